"""One encoder, any number of heads, one or several views."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .encoders import call_encoder

__all__ = ["EncoderWithClassifier", "EncoderWithHeads"]


class EncoderWithHeads(nn.Module):
    """Embed one or several views of the same crops and hand the embedding to named heads.

    All views go through the encoder in one concatenated pass: batch normalisation sees them together and distributed
    training sees one forward. The result is a dictionary, from which a loss takes its arguments by name
    (`WeightedSumLoss`; the config lists the names):

    - `embedding` `(N, F)`: mean over the views; for the distance loss, inference and metrics.
    - `embedding_1` .. `embedding_V` `(N, F)`: per view, only where V > 1; for NT-Xent and Barlow Twins.
    - `HEAD` `(N, D)`: mean over the views; for the distance loss and coordinate regression.
    - `HEAD_1` .. `HEAD_V` `(N, D)`: per view, only where V > 1; for Barlow Twins.

    Weights are named `encoder.*` and `heads.HEAD.*`. The heads of the ISImed variants need no class of ours:
    `torch.nn.Linear` for the two-head variant (512 and 2048 outputs), MONAI's `FullyConnectedNet(in_channels,
    out_channels, hidden_channels, act: relu)` for coordinate regression.

    Args:
        encoder: `(N, C, *roi)` -> `(N, F)`: DenseNet121, `PooledEncoder` or any other that gives vectors.
        heads: name -> module `(N, F)` -> `(N, D)`; None for the encoder alone.

    Raises:
        ValueError: if a head's name is that of another output (`embedding` or one that ends in an underscore and a
            number).
    """

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        for name in heads or {}:
            if name == "embedding" or re.search(r"_\d+$", name):
                raise ValueError(
                    f"a head cannot be called {name!r}, the name of another output: leave the number at its end out"
                )
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    def forward(self, x: torch.Tensor | Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embed crops, or several views of the same crops.

        Args:
            x: `(N, C, *roi)` crops, or V such tensors, one per view, with the crops in the same order.

        Returns:
            The outputs by name; see the list above.

        Raises:
            ValueError: if the views differ in shape, the crops do not suit the encoder, or the encoder does not give
                vectors.
        """
        views = [x] if isinstance(x, torch.Tensor) else list(x)
        if len({view.shape for view in views}) != 1:
            raise ValueError(
                f"views of the same crops must have one shape, got {[tuple(view.shape) for view in views]}"
            )
        embedding = call_encoder(self.encoder, torch.cat(views) if len(views) > 1 else views[0])  # (V * N, F)
        if not isinstance(embedding, torch.Tensor) or embedding.ndim != 2:
            raise ValueError(
                f"{type(self.encoder).__name__} does not give one vector per crop: wrap it in PooledEncoder"
            )
        outputs = _per_view("embedding", embedding, len(views))
        for name, head in self.heads.items():
            outputs.update(_per_view(name, head(embedding), len(views)))
        return outputs


class EncoderWithClassifier(nn.Module):
    """Classify crops by a linear layer on an encoder's embedding.

    Weights are named `encoder.*` and `head.*`. Scripts with TorchScript where the encoder does.

    Args:
        encoder: `(N, C, *roi)` -> `(N, F)`.
        num_features: F, the length of the embedding.
        num_classes: K, outputs.
        dropout: share of the embedding's features dropped while training.
    """

    def __init__(self, encoder: nn.Module, num_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give logits `(N, K)` for crops `(N, C, *roi)`."""
        return self.head(self.dropout(self.encoder(x)))  # (N, K)


def _per_view(name: str, stacked: torch.Tensor, num_views: int) -> dict[str, torch.Tensor]:
    """Name the mean over views and, where there are several, every view's part of `stacked` `(V * N, F)`."""
    if num_views == 1:
        return {name: stacked}
    views = stacked.chunk(num_views)  # V times (N, F)
    return {name: torch.stack(views).mean(dim=0)} | {f"{name}_{i}": view for i, view in enumerate(views, start=1)}
