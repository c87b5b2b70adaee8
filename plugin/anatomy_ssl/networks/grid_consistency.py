"""One encoder with the heads of grid-matched self-supervision (PEAC): order, restoration, global and local."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from monai.networks.utils import pixelshuffle
from torch import nn

__all__ = ["GridConsistencyNetwork", "expander"]


class GridConsistencyNetwork(nn.Module):
    """Encode two views of an image cell by cell and hand the tokens to heads (Zhou et al. 2023, arXiv 2312.00335).

    Both views go through the encoder in one pass. The first view may be distorted, so that order and restoration are
    predicted for it alone. Heads run only where their output is used: a teacher (`StudentTeacher`) is asked for the
    embeddings, and a head that no loss needs is left out. Any number of axes; a cell is a token.

    Outputs, with T the cells of a view:

    - `tokens_1`, `tokens_2` `(N, T, F)`: the encoder's, detached, for metrics and pictures;
    - `order` `(N, T, T)`: for each place the scores of the cells that may be shown there;
    - `restored` `(N, C, *spatial)`: the first view as it would be without distortion;
    - `global_1`, `global_2` `(N, G)`; `local_1`, `local_2` `(N, T, L)`.

    Args:
        encoder: `(N, C, *spatial)` -> `(N, F, *grid)`, one token for each cell.
        num_features: F.
        grid_size: cells of a view along each axis.
        cell_size: voxels of a cell along each axis.
        channels: C of the restored image; 0 leaves the head out.
        order: whether to predict the order of cells.
        global_features: G; 0 leaves the head out.
        local_features: L; 0 leaves the head out.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_features: int,
        grid_size: Sequence[int],
        cell_size: int,
        channels: int = 1,
        order: bool = True,
        global_features: int = 8192,
        local_features: int = 512,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.grid_size, self.cell_size = tuple(grid_size), cell_size
        self.order_head = nn.Linear(num_features, math.prod(self.grid_size)) if order else None
        voxels = cell_size ** len(self.grid_size)
        self.restoration_head = nn.Linear(num_features, voxels * channels) if channels else None
        self.global_head = expander(num_features, global_features) if global_features else None
        self.local_head = expander(num_features, local_features) if local_features else None

    def forward(
        self, views: Sequence[torch.Tensor], student: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Encode two views.

        Args:
            views: two tensors `(N, C, *spatial)`.
            student: a student's outputs for the views, to act as its teacher: to give the global and local embeddings
                alone. None for the student itself.

        Returns:
            The outputs by name; see the list above.

        Raises:
            ValueError: if the encoder's tokens are not one for each cell.
        """
        if student is not None and self.global_head is None and self.local_head is None:
            return {}
        features = self.encoder(torch.cat(list(views)))  # (2N, F, *grid)
        if tuple(features.shape[2:]) != self.grid_size:
            raise ValueError(
                f"{type(self.encoder).__name__} gives {tuple(features.shape[2:])} tokens for views of "
                f"{tuple(views[0].shape[2:])} voxels, the lattice has {self.grid_size} cells: the encoder's "
                "stride has to be the size of a cell"
            )
        tokens = features.flatten(2).mT  # (2N, T, F)
        outputs: dict[str, torch.Tensor] = {}
        if self.global_head is not None:
            outputs |= _by_view("global", self.global_head(tokens.mean(dim=1)))
        if self.local_head is not None:
            outputs |= _by_view("local", self.local_head(tokens))
        if student is not None:
            return outputs
        first = tokens.chunk(2)[0]
        if self.order_head is not None:
            outputs["order"] = self.order_head(first)
        if self.restoration_head is not None:
            cells = self.restoration_head(first).mT.unflatten(2, self.grid_size)
            outputs["restored"] = pixelshuffle(cells, len(self.grid_size), self.cell_size)
        return outputs | _by_view("tokens", tokens.detach())


def expander(in_features: int, features: int) -> nn.Sequential:
    """Three linear layers with LayerNorm and ReLU between, the last without bias: `(..., F)` -> `(..., features)`."""
    return nn.Sequential(
        nn.Linear(in_features, features),
        nn.LayerNorm(features),
        nn.ReLU(inplace=True),
        nn.Linear(features, features),
        nn.LayerNorm(features),
        nn.ReLU(inplace=True),
        nn.Linear(features, features, bias=False),
    )


def _by_view(name: str, stacked: torch.Tensor) -> dict[str, torch.Tensor]:
    """The halves of a batch of two views under their names."""
    return {f"{name}_{number}": half for number, half in enumerate(stacked.chunk(2), start=1)}
