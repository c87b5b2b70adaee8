"""The projection head of self-distillation: tokens to scores of prototypes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["DistillationHead"]


class DistillationHead(nn.Module):
    """Three linear layers with GELU, a unit vector, and its cosines with learnt prototypes (DINO, iBOT).

    Caron et al. 2021 (arXiv 2104.14294) and Zhou et al. 2022 (arXiv 2111.07832). The last layer is weight-normalised:
    with the gain fixed at 1, scores are cosines, from -1 to 1. It is the one to freeze for the first epoch
    (`handlers.FreezeUntil(network.student.head.last_layer, epochs)`).

    Args:
        in_features: F.
        hidden: width of the two hidden layers.
        bottleneck: length of the unit vector.
        prototypes: K, scores.
        train_gain: whether the prototypes' lengths are learnt as well; they start at 1.
        standardise: bring each feature of the batch's rows to mean 0 and variance 1 first (batch normalisation without
            weights or memory, in evaluation too). Tokens share most of what they say; in small batches and short
            trainings the head otherwise sees next to no difference between them, and all become one. Needs more than
            one row.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 512,
        train_gain: bool = False,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(in_features, affine=False, track_running_stats=False) if standardise else None
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        last = nn.Linear(bottleneck, prototypes, bias=False)
        # torch's own start has biases as large as the signal, so that all tokens would begin as nearly one vector
        for layer in (*self.mlp, last):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(last)
        gain = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(gain)
        gain.requires_grad_(train_gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score tokens.

        Args:
            x: `(..., F)`.

        Returns:
            `(..., K)`.
        """
        if self.standardise is not None:
            x = self.standardise(x.flatten(0, -2)).view_as(x)
        vector = self.mlp(x)
        # in single precision at least: squares of half precision overflow, as would the slope at vectors under eps
        vector = F.normalize(vector.to(torch.promote_types(vector.dtype, torch.float32)), dim=-1, eps=1e-4)
        return self.last_layer(vector)
