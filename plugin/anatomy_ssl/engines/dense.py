"""A map over a whole volume of what a network says of crops, on a regular grid, as a MONAI inferer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.inferers import Inferer
from monai.transforms import ResampleToMatch, Spacing
from monai.utils import ensure_tuple_rep


class GridEmbeddingInferer(Inferer):
    """Runs a network on crops on a regular grid of a volume: the dense counterpart of an encoder, or of a classifier.

    Where the volume is smaller than one crop, it is padded by its border's values.

    Args:
        roi_size: crop size in voxels of the volume (in samples, where `spacing` is given); the size that the network
            was trained with.
        step: distance between crops in voxels (in samples).
        batch_size: crops in the network at once.
        to_edges: whether crops may reach over the volume's edge, so that their centres cover all of it; there they see
            the border's values repeated. Without it only whole crops are taken, as in training, and the map ends half
            a crop before the edge.
        spacing: mm between a crop's samples; the volume is resampled to it first, along the world's axes. None takes
            the volume's own voxels.
        like_input: whether the map is interpolated to the voxels of the volume that was given, as a segmentation
            network's output would be; beyond the outermost centres it keeps their values.

    A call takes the volume `(1, C, *spatial)` and gives a `MetaTensor` `(1, F, *grid)`, whose affine places the centre
    of each crop in world mm; with `like_input` it is `(1, F, *spatial)` and has the volume's affine.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        step: Sequence[int] | int = 8,
        batch_size: int = 32,
        to_edges: bool = False,
        spacing: Sequence[float] | None = None,
        like_input: bool = False,
    ) -> None:
        super().__init__()
        self.roi_size = tuple(int(r) for r in roi_size)
        self.step = ensure_tuple_rep(step, len(self.roi_size))
        self.batch_size, self.to_edges, self.like_input = batch_size, to_edges, like_input
        if min(*self.roi_size, *self.step, batch_size) < 1:
            raise ValueError(f"roi_size {self.roi_size}, step {self.step} and batch_size {batch_size} must be positive")
        self.resample = None if spacing is None else Spacing(pixdim=spacing, diagonal=True)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the network on the crops of one volume; see the class.

        Raises:
            ValueError: for several volumes at once, or another number of axes.
        """
        dims = len(self.roi_size)
        if inputs.shape[0] != 1 or inputs.ndim != dims + 2:
            raise ValueError(
                f"the grid of crops is made of one volume (1, C, {dims} axes) at a time, got {tuple(inputs.shape)}"
            )
        affine = torch.as_tensor(getattr(inputs, "affine", torch.eye(4)))
        # a collated batch holds one matrix per image, 4 x 4 whatever the number of axes
        affine = to_affine_nd(dims, affine.reshape(-1, *affine.shape[-2:])[0])
        given = MetaTensor(inputs.as_tensor()[0] if isinstance(inputs, MetaTensor) else inputs[0], affine=affine)
        volume: Any = given if self.resample is None else self.resample(given)
        values, padded_before = self._run(volume.as_tensor(), lambda crops: network(crops, *args, **kwargs))
        grid = MetaTensor(values, affine=self._grid_affine(to_affine_nd(dims, volume.affine), padded_before))
        if not self.like_input:
            return grid[None]
        # float32 places samples to a thousandth of a voxel, at half of the memory
        return ResampleToMatch(mode="bilinear", padding_mode="border", dtype=np.float32)(grid, img_dst=given)[None]

    def _run(
        self, volume: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, list[int]]:
        """The map `(F, *grid)` of a volume `(C, *spatial)`, and how many voxels were added ahead of each axis."""
        missing = [r - 1 if self.to_edges else max(0, r - n) for r, n in zip(self.roi_size, volume.shape[1:])]
        before = [m // 2 for m in missing]
        pad = [side for m, b in zip(reversed(missing), reversed(before)) for side in (b, m - b)]
        windows = F.pad(volume[None], pad, mode="replicate")[0]
        for axis, (size, step) in enumerate(zip(self.roi_size, self.step)):
            windows = windows.unfold(axis + 1, size, step)
        grid = windows.shape[1 : len(self.roi_size) + 1]
        index = torch.cartesian_prod(*[torch.arange(n) for n in grid])
        maps = []
        for part in index.split(self.batch_size):
            crops = torch.stack([windows[(slice(None),) + tuple(i)] for i in part.tolist()])
            maps.append(network(crops.contiguous()))
        return torch.cat(maps).T.reshape(-1, *grid), before

    def _grid_affine(self, affine: torch.Tensor, padded_before: Sequence[int]) -> torch.Tensor:
        """Grid index to world mm, of the centres of crops."""
        dims = len(self.roi_size)
        to_voxel = torch.eye(dims + 1, dtype=torch.float64)
        to_voxel[:dims, :dims] = torch.diag(torch.tensor(self.step, dtype=torch.float64))
        to_voxel[:dims, -1] = torch.tensor([(r - 1) / 2 - b for r, b in zip(self.roi_size, padded_before)])
        return affine.to(torch.float64) @ to_voxel
