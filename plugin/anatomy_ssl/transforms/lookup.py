"""Intensities as a lookup table over stored integers, instead of as a second volume of floats."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRanged

from anatomy_ssl.data.lookup_volume import LookupVolume, Volume, box_slices
from anatomy_ssl.transforms.intensity import histogram

__all__ = ["IntensityLookupd"]

MOST_LEVELS = 1 << 16


class IntensityLookupd(MapTransform):
    """Run a transform of intensities, keeping volumes of integers as they are, with a table of what they become.

    The result is a `LookupVolume`, whose crops have the very values that the transform gives, bit by bit: a crop of it
    equals the crop of the transformed volume. It takes the memory of the integers alone, and is what a crop store maps
    from disk. The box outside of which every voxel has one and the same value is all that is kept of it.

    Volumes of floats (stored so, or resampled), and volumes whose intensities do not depend on the voxel's own value
    alone, such as after a smoothing, come out as the transform leaves them.

    Args:
        keys: volumes `(C, *spatial)`, as `LoadVolumed(keep_integers=True)` reads them.
        intensity: any dictionary transform of intensities of these keys.
    """

    def __init__(self, keys: KeysCollection, intensity: Callable[[Any], Any]) -> None:
        super().__init__(keys)
        self.intensity = intensity

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the volumes."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._look_up(d[key], key)
        return d

    def _look_up(self, volume: MetaTensor, key: Hashable) -> Volume:
        values = volume.as_tensor()
        if values.is_floating_point():
            return self._transformed(volume, key)
        counted = [histogram(channel) for channel in values]
        first = min(low for low, _ in counted)
        levels = max(low + len(counts) for low, counts in counted) - first
        if levels > MOST_LEVELS:
            return self._transformed(volume, key)
        rows = [torch.zeros(levels, dtype=torch.int64) for _ in counted]
        for row, (low, counts) in zip(rows, counted):
            row[low - first : low - first + len(counts)] = counts
        intensities = torch.arange(first, first + levels, dtype=torch.float32)
        table = self._table(volume, key, intensities, torch.stack(rows))
        if table is None:
            return self._transformed(volume, key)
        lowest = float(table[torch.stack(rows) > 0].min())
        name = str(volume.meta.get("filename_or_obj", key))
        corner, codes, outside = content_box(values)
        affine = volume.affine.to(torch.float64)
        return LookupVolume(codes, table, first, affine, name, corner, tuple(values.shape[1:]), outside, lowest)

    def _transformed(self, volume: MetaTensor, key: Hashable) -> MetaTensor:
        floats = volume if volume.is_floating_point() else volume.float()
        return self.intensity({key: floats})[key]

    def _table(
        self, volume: MetaTensor, key: Hashable, levels: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor | None:
        """Intensities `(C, K)` of the levels; None where no table gives them."""
        if hasattr(self.intensity, "table"):
            if not getattr(self.intensity, "channel_wise", True):
                counts = counts.sum(dim=0).expand_as(counts)
            return torch.stack([self.intensity.table(levels, row) for row in counts])
        if type(self.intensity) is ScaleIntensityRanged:  # looks at nothing but the voxel
            image = levels.expand(len(counts), *[1] * (volume.ndim - 2), -1).contiguous()
            return torch.as_tensor(self.intensity({key: image})[key]).float().reshape(len(counts), -1)
        changed = torch.as_tensor(self._transformed(volume, key))
        if changed.shape != volume.shape or changed.dtype != torch.float32:
            return None
        table = torch.zeros(counts.shape)
        index = (volume.as_tensor().to(torch.int64) - int(levels[0])).flatten(1)
        new = getattr(changed, "as_tensor", lambda: changed)().flatten(1)
        table.scatter_(1, index, new)
        return table if torch.equal(table.gather(1, index), new) else None


def content_box(values: torch.Tensor) -> tuple[tuple[int, ...], torch.Tensor, tuple[int, ...]]:
    """The box of a volume `(C, *spatial)` outside of which each channel has the value of the volume's first voxel.

    Returns:
        its first voxel `(D,)`, its content `(C, *box)`, contiguous, and these values `(C,)`.
    """
    channels = len(values)
    outside = values.reshape(channels, -1)[:, 0]
    corner, stop = [0] * (values.ndim - 1), list(values.shape[1:])
    for axis in range(values.ndim - 1):
        moved = values.movedim(axis + 1, 1)
        corner[axis], stop[axis] = _content_range(moved, outside, stop[axis])
    if any(a >= b for a, b in zip(corner, stop)):  # constant: one voxel says it all
        corner, stop = [0] * len(corner), [1] * len(stop)
    box = values[box_slices(corner, [b - a for a, b in zip(corner, stop)])]
    return tuple(corner), box.contiguous(), tuple(int(v) for v in outside)


def _content_range(planes: torch.Tensor, outside: torch.Tensor, count: int) -> tuple[int, int]:
    """From which to before which of the planes `(C, count, ...)` something differs from `outside` `(C,)`."""

    def plain(index: int) -> bool:
        plane = planes[:, index]
        return bool((plane == outside.view(-1, *[1] * (plane.ndim - 1))).all())

    first = next((i for i in range(count) if not plain(i)), None)
    if first is None:
        return 0, 0
    last = next((i for i in range(count - 1, first, -1) if not plain(i)), first)
    return first, last + 1
