"""Crops around given points that stay where they are: what lies outside of the volume is filled, not moved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from anatomy_ssl.data.lookup_volume import Volume, lowest_value, read_boxes
from anatomy_ssl.transforms.crops import half_extent, world_to_voxel
from anatomy_ssl.transforms.points import voxel_to_world
from anatomy_ssl.transforms.resampling import resampled_crops, world_axes_grid

__all__ = ["inside_volume", "padded_crops_at"]


def inside_volume(volume: Volume, points: torch.Tensor) -> torch.Tensor:
    """Which points `(N, D)` in world mm lie in one of the volume's voxels, `(N,)` booleans; NaN lies nowhere."""
    voxel = world_to_voxel(volume.affine, points)
    last = torch.as_tensor(volume.shape[1:], dtype=torch.float64) - 0.5
    return ((voxel >= -0.5) & (voxel <= last)).all(dim=1)


def padded_crops_at(
    volume: Volume,
    centres: torch.Tensor,
    roi_size: Sequence[int],
    spacing: Sequence[float] | None = None,
    mode: str = "bilinear",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut crops around world points, and fill what lies outside of the volume with the volume's lowest value.

    As `crops_at`, which moves crops into the volume instead: here two crops around the same anatomy show the same, also
    at the border, and a volume may be smaller than the crop.

    Args:
        volume: `(C, *spatial)` with affine, 2D or 3D, any number of channels.
        centres: `(N, D)` world mm.
        roi_size: `(D,)` samples.
        spacing: `(D,)` mm between samples along the world's axes; None cuts boxes of the volume's own voxels, in its
            own axes, whose centres are up to half a voxel off.
        mode: "bilinear" (trilinear in 3D) or "nearest", for resampling.

    Returns:
        crops `(N, C, *roi_size)` and their true centres `(N, D)` in world mm, float32.
    """
    voxel = world_to_voxel(volume.affine, centres)
    reach = half_extent(volume.affine, roi_size, spacing)
    if spacing is not None:
        crops = resampled_crops(volume, voxel, roi_size, spacing, mode)
        last = torch.as_tensor(volume.shape[1:], dtype=torch.float64) - 0.5
        if ((voxel - reach < -0.5) | (voxel + reach > last)).any():
            grid = world_axes_grid(volume.affine, voxel, roi_size, spacing)
            outside = ((grid < -0.5) | (grid > last)).any(dim=-1)[:, None]
            crops = torch.where(outside, lowest_value(volume), crops)
        return crops, centres.float()
    starts = (voxel - reach).round()
    boxes = [padded_box(volume, start, roi_size) for start in starts.long().tolist()]
    return torch.stack(boxes), voxel_to_world(volume.affine, starts + reach)


def padded_box(volume: Volume, start: Sequence[int], size: Sequence[int], value: float | None = None) -> torch.Tensor:
    """The box `(C, *size)` of a volume `(C, *spatial)` that begins at voxel `start`, a copy.

    What lies outside of the volume gets `value`, by default the volume's lowest.
    """
    before = [min(max(-a, 0), n) for a, n in zip(start, size)]
    after = [min(max(a + n - length, 0), n) for a, n, length in zip(start, size, volume.shape[1:])]
    inner = [n - b - a for n, b, a in zip(size, before, after)]
    if min(inner) <= 0:
        return torch.full((volume.shape[0], *size), lowest_value(volume) if value is None else value)
    box = read_boxes(volume, torch.tensor([start]).clamp(min=0), inner)[0]
    if not any(before) and not any(after):
        return box
    pads = [n for pair in reversed(list(zip(before, after))) for n in pair]
    return F.pad(box, pads, value=lowest_value(volume) if value is None else value)
