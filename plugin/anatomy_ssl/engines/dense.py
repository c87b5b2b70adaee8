"""A map of embeddings over a whole volume, on a regular grid of crops, as a MONAI inferer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep


class GridEmbeddingInferer(Inferer):
    """Embeds crops on a regular grid of a volume: the dense counterpart of the encoder.

    Where the volume is smaller than one crop, it is padded by its border's values.

    Args:
        roi_size: crop size in voxels of the prepared volume; the size that the encoder was trained with.
        step: distance between crops in voxels.
        batch_size: crops embedded at once.
        to_edges: whether crops may reach over the volume's edge, so that their centres cover all of it; there they see
            the border's values repeated. Without it only whole crops are taken, as in training, and the map ends half
            a crop before the edge.

    A call takes the volume `(1, C, *spatial)` and gives a `MetaTensor` `(1, F, *grid)`, whose affine places the centre
    of each crop in world mm.
    """

    def __init__(
        self, roi_size: Sequence[int], step: Sequence[int] | int = 8, batch_size: int = 32, to_edges: bool = False
    ) -> None:
        super().__init__()
        self.roi_size = tuple(int(r) for r in roi_size)
        self.step = ensure_tuple_rep(step, len(self.roi_size))
        self.batch_size, self.to_edges = batch_size, to_edges
        if min(*self.roi_size, *self.step, batch_size) < 1:
            raise ValueError(f"roi_size {self.roi_size}, step {self.step} and batch_size {batch_size} must be positive")

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Embed the crops of one volume; see the class."""
        if inputs.shape[0] != 1 or inputs.ndim != len(self.roi_size) + 2:
            expected = f"(1, C, {len(self.roi_size)} axes)"
            raise ValueError(
                f"the grid of embeddings is made of one volume {expected} at a time, got {tuple(inputs.shape)}"
            )
        dims = len(self.roi_size)
        affine = torch.as_tensor(getattr(inputs, "affine", torch.eye(4)))
        # a collated batch holds one matrix per image, 4 x 4 whatever the number of axes
        affine = to_affine_nd(dims, affine.reshape(-1, *affine.shape[-2:])[0])
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        missing = [r - 1 if self.to_edges else max(0, r - n) for r, n in zip(self.roi_size, volume.shape[2:])]
        before = [m // 2 for m in missing]
        pad = [side for m, b in zip(reversed(missing), reversed(before)) for side in (b, m - b)]
        volume = F.pad(volume, pad, mode="replicate")[0]
        windows = volume
        for axis, (size, step) in enumerate(zip(self.roi_size, self.step)):
            windows = windows.unfold(axis + 1, size, step)
        grid = windows.shape[1 : dims + 1]
        index = torch.cartesian_prod(*[torch.arange(n) for n in grid])
        maps = []
        for part in index.split(self.batch_size):
            crops = torch.stack([windows[(slice(None),) + tuple(i)] for i in part.tolist()])
            maps.append(network(crops.contiguous(), *args, **kwargs))
        features = torch.cat(maps).T.reshape(1, -1, *grid)
        return MetaTensor(features, affine=self._grid_affine(affine, before))

    def _grid_affine(self, affine: torch.Tensor, padded_before: Sequence[int]) -> torch.Tensor:
        """Grid index to world mm, of the centres of crops."""
        dims = len(self.roi_size)
        to_voxel = torch.eye(dims + 1, dtype=torch.float64)
        to_voxel[:dims, :dims] = torch.diag(torch.tensor(self.step, dtype=torch.float64))
        to_voxel[:dims, -1] = torch.tensor([(r - 1) / 2 - b for r, b in zip(self.roi_size, padded_before)])
        return affine.to(torch.float64) @ to_voxel
