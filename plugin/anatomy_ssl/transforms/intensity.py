"""Intensities between percentiles to a range, by a histogram where the volume is of integers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import get_track_meta
from monai.transforms import MapTransform, ScaleIntensityRange, ScaleIntensityRangePercentiles
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["ScaleRangePercentilesd", "histogram"]

# voxels that are widened at once: what they become stays in the processor's cache
_CHUNK = 1 << 18


class ScaleRangePercentilesd(MapTransform):
    """Scale intensities so that two percentiles become the ends of a range: MONAI's, with a lookup table for integers.

    The same as `ScaleIntensityRangePercentilesd`, in float32. Percentiles of volumes of integers come from a histogram,
    exact and without sorting; each of their intensities is scaled once, by `table`, and looked up for every voxel.
    Where both percentiles are the same, intensities are moved by them to `b_min`, neither scaled nor clipped, and
    MONAI warns.

    Args:
        keys: images `(C, *spatial)`.
        lower: percentile that becomes `b_min`, 0 to 100.
        upper: percentile that becomes `b_max`.
        b_min: None, here or in `b_max`, gives the lower percentile 0 and the upper 1.
        b_max: see there.
        clip: cut what is below `b_min` and above `b_max`.
        channel_wise: percentiles of each channel, not of all together.

    Raises:
        ValueError: when a percentile is not within 0 to 100.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float,
        upper: float,
        b_min: float | None,
        b_max: float | None,
        clip: bool = False,
        channel_wise: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lower, self.upper, self.b_min, self.b_max, self.clip = lower, upper, b_min, b_max, clip
        self.channel_wise = channel_wise
        self.floats = ScaleIntensityRangePercentiles(lower, upper, b_min, b_max, clip, channel_wise=channel_wise)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the images."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = convert_to_tensor(d[key], track_meta=get_track_meta())
            if image.is_floating_point():
                d[key] = self.floats(image)
                continue
            values = convert_to_tensor(image, track_meta=False)
            scaled = torch.empty(values.shape)
            if self.channel_wise:
                for channel, into in zip(values, scaled):
                    self._scale(channel, into)
            else:
                self._scale(values, scaled)
            d[key] = convert_to_dst_type(scaled, dst=image, dtype=torch.float32)[0]
        return d

    def table(self, levels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """What intensities become in a volume in which each occurs so many times.

        Args:
            levels: intensities `(K,)` float32, ascending.
            counts: `(K,)` int64, how many voxels have each; 0 for levels that do not occur. Of one channel, and of all
                where the percentiles are of all.

        Returns:
            `(K,)` float32.
        """
        a_min, a_max = (percentile(levels, counts, q).float() for q in (self.lower, self.upper))
        scale = ScaleIntensityRange(a_min, a_max, self.b_min, self.b_max, self.clip)  # type: ignore[arg-type]
        return convert_to_tensor(scale(levels), track_meta=False)

    def _scale(self, values: torch.Tensor, scaled: torch.Tensor) -> None:
        """Write integers, scaled by their own percentiles, into contiguous float32 of the same shape."""
        lowest, counts = histogram(values)
        table = self.table(torch.arange(lowest, lowest + len(counts), dtype=torch.float32), counts).numpy()
        for part, into in zip(values.reshape(-1).split(_CHUNK), scaled.view(-1).split(_CHUNK)):
            index = part.to(torch.int64, copy=True).sub_(lowest)
            # "clip", which has nothing to clip here, is what lets numpy write into the result itself
            np.take(table, index.numpy(), out=into.numpy(), mode="clip")


def percentile(levels: torch.Tensor, counts: torch.Tensor, q: float) -> torch.Tensor:
    """The percentile `q` (0 to 100) of intensities that occur so many times, as `numpy.percentile` of them all.

    Between two order statistics it is interpolated linearly.

    Args:
        levels: intensities `(K,)`, ascending.
        counts: `(K,)` int64.

    Returns:
        one number, float64.
    """
    until = counts.cumsum(0)
    rank = (int(until[-1]) - 1) * (q / 100)
    ranks = torch.tensor([int(rank), min(int(rank) + 1, int(until[-1]) - 1)])
    below, above = levels[torch.searchsorted(until, ranks, right=True)].double()
    return below + (above - below) * (rank - int(rank))


def histogram(values: torch.Tensor) -> tuple[int, torch.Tensor]:
    """How often each integer occurs.

    Args:
        values: integers of any shape, not empty.

    Returns:
        the lowest value, and the counts of it and of each up to the highest, `(levels,)` int64.
    """
    flat = convert_to_tensor(values, track_meta=False).reshape(-1)
    lowest, highest = (int(v) for v in torch.aminmax(flat))
    counts = torch.zeros(highest - lowest + 1, dtype=torch.int64)
    wide = torch.promote_types(flat.dtype, torch.int32)
    for part in flat.split(max(_CHUNK, len(counts))):
        # a copy: of int32, `to` gives the volume itself
        counts += torch.bincount(part.to(wide, copy=True).sub_(lowest), minlength=len(counts))
    return lowest, counts
