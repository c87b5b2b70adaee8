"""Values of a volume on grids along the world's axes, from the boxes of voxels that they need and no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from anatomy_ssl.data.lookup_volume import Volume, read_boxes

__all__ = ["resampled_crops", "sample_volume", "world_axes_grid"]

ALIGNED = 1e-6  # of a step, up to which one along an axis of the world counts as one along an axis of the volume


def resampled_crops(
    volume: Volume, centres: torch.Tensor, roi_size: Sequence[int], spacing: Sequence[float], mode: str = "bilinear"
) -> torch.Tensor:
    """Crops `(N, C, *roi_size)` on grids along the world's axes (R, A, S); the volume's border goes on outside.

    Where these are the volume's own axes, it is interpolated along one after the other, several times as fast as all at
    once, and equal but for rounding.

    Args:
        volume: `(C, *spatial)` with affine.
        centres: of the crops, `(N, D)` voxel coordinates.
        roi_size: `(D,)` samples.
        spacing: `(D,)` mm between samples.
        mode: "bilinear" (trilinear in 3D) or "nearest".
    """
    steps = voxel_steps(volume.affine, spacing)
    along = steps.diagonal()
    if bool(((steps - along.diag()).abs() <= ALIGNED * along.abs().min()).all()):
        return torch.stack([_along_axes(volume, centre, roi_size, along, mode) for centre in centres])
    grids = world_axes_grid(volume.affine, centres, roi_size, spacing)
    return torch.stack([_at_once(volume, grid, mode) for grid in grids])


def voxel_steps(affine: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    """Voxels that a step of `spacing` mm along each of the world's axes takes, `(D, D)`, a column for each."""
    dims = len(spacing)
    return torch.linalg.inv(affine[:dims, :dims].to(torch.float64)) * torch.as_tensor(spacing, dtype=torch.float64)


def world_axes_grid(
    affine: torch.Tensor, centres: torch.Tensor, roi_size: Sequence[int], spacing: Sequence[float]
) -> torch.Tensor:
    """Voxel coordinates `(N, *roi_size, D)` float64 of grids along the world's axes, `spacing` mm between samples.

    Args:
        affine: voxel to world mm, `(D + 1, D + 1)`.
        centres: `(N, D)` voxel coordinates.
        roi_size: samples along R, A, S.
        spacing: mm.
    """
    index = torch.stack(torch.meshgrid(*[_offsets(r) for r in roi_size], indexing="ij"), dim=-1)
    return centres.view(-1, *[1] * len(roi_size), len(roi_size)) + index @ voxel_steps(affine, spacing).T


def sample_volume(values: torch.Tensor, voxels: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Values `(N, C, *roi)` of a volume `(C, *spatial)` at voxels `(N, *roi, D)`; its border goes on outside."""
    size = torch.as_tensor(values.shape[1:], dtype=torch.float64)
    grid = voxels / (size - 1).clamp(min=1) * 2 - 1
    source = values[None].expand(len(voxels), *values.shape)
    # grid_sample wants the last spatial axis first
    return F.grid_sample(source, grid.flip(-1).to(values), mode, "border", align_corners=True)


def _offsets(size: int) -> torch.Tensor:
    """Of samples from the middle."""
    return torch.arange(size, dtype=torch.float64) - (size - 1) / 2


def _at_once(volume: Volume, grid: torch.Tensor, mode: str) -> torch.Tensor:
    """Values `(C, *roi)` at voxels `(*roi, D)`."""
    last = torch.as_tensor(volume.shape[1:]) - 1
    flat = grid.reshape(-1, grid.shape[-1])
    low = torch.minimum(flat.amin(0).floor().long().clamp(min=0), last)
    high = torch.maximum(torch.minimum(flat.amax(0).ceil().long(), last), low)
    box = read_boxes(volume, low[None], (high - low + 1).tolist())[0]
    return sample_volume(box, grid[None] - low, mode)[0]


def _along_axes(
    volume: Volume, centre: torch.Tensor, roi_size: Sequence[int], along: torch.Tensor, mode: str
) -> torch.Tensor:
    """Values `(C, *roi_size)`, `along` `(D,)` voxels between samples."""
    places = [
        (c + _offsets(r) * step).clamp(0, n - 1)
        for c, r, step, n in zip(centre.tolist(), roi_size, along.tolist(), volume.shape[1:])
    ]
    low = [int(min(place[0], place[-1])) for place in places]
    size = [int(-(-max(place[0], place[-1]) // 1)) - a + 1 for place, a in zip(places, low)]
    values = read_boxes(volume, torch.tensor([low]), size)[0]
    for axis, (place, begin) in reversed(list(enumerate(zip(places, low), start=1))):
        inside = place - begin
        if mode == "nearest":
            values = values.index_select(axis, inside.round().long())
            continue
        before = inside.long()
        after = (before + 1).clamp(max=values.shape[axis] - 1)
        weight = (inside - before).to(values).view(-1, *[1] * (values.ndim - 1 - axis))
        values = torch.lerp(values.index_select(axis, before), values.index_select(axis, after), weight)
    return values
