"""A volume of integers with a table has, crop by crop, the values of the transformed volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import GaussianSmoothd, NormalizeIntensityd, ScaleIntensityRanged, ScaleIntensityRangePercentilesd

from anatomy_ssl.data.lookup_volume import LookupVolume, lowest_value, read_boxes
from anatomy_ssl.transforms import IntensityLookupd, ScaleRangePercentilesd
from anatomy_ssl.transforms.lookup import content_box

WINDOW = ScaleIntensityRanged("image", a_min=-125, a_max=225, b_min=0, b_max=1, clip=True)
PERCENTILES = ScaleRangePercentilesd("image", 5, 95, -1, 1)
TOGETHER = ScaleRangePercentilesd("image", 5, 95, -1, 1, channel_wise=False)
MONAI = ScaleIntensityRangePercentilesd("image", 5, 95, -1, 1, channel_wise=True)
NORMAL = NormalizeIntensityd("image", nonzero=False)
TYPES = {torch.uint8: (0, 255), torch.int8: (-100, 100), torch.int16: (-1024, 3071), torch.int32: (-40_000, 20_000)}


def integers(dtype: torch.dtype, shape: tuple[int, ...] = (1, 12, 10, 9), border: int = 2) -> MetaTensor:
    """Random integers amid a border of the lowest value."""
    low, high = TYPES[dtype]
    values = np.full(shape, low)
    inner = tuple(slice(border, n - border) for n in shape[1:])
    inside = values[(slice(None), *inner)]
    inside[:] = np.random.default_rng(0).integers(low, high + 1, inside.shape)
    affine = torch.diag(torch.tensor([2.0] * (len(shape) - 1) + [1.0], dtype=torch.float64))
    return MetaTensor(torch.as_tensor(values, dtype=dtype), affine=affine, meta={"filename_or_obj": "p.nii.gz"})


def looked_up(volume: MetaTensor, intensity: Callable[[Any], Any]) -> Any:
    return IntensityLookupd("image", intensity)({"image": volume})["image"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("intensity", [WINDOW, PERCENTILES, TOGETHER, MONAI, NORMAL], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("shape", [(1, 12, 10, 9), (2, 12, 10, 9), (3, 20, 14)])
def test_crops_are_those_of_the_transformed_volume(
    dtype: torch.dtype, intensity: Callable[[Any], Any], shape: tuple[int, ...]
) -> None:
    volume = integers(dtype, shape)
    volume[-1] = volume[-1] // 3  # channels with histograms of their own
    plain = volume.clone() if isinstance(intensity, ScaleRangePercentilesd) else volume.clone().float()
    expected = intensity({"image": plain})["image"]
    found = looked_up(volume, intensity)
    assert isinstance(found, LookupVolume) and found.codes.dtype == dtype and found.shape == volume.shape
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert lowest_value(found) == float(expected.min())
    assert torch.equal(found.affine, volume.affine) and torch.equal(found.pixdim, volume.pixdim[: len(shape) - 1])
    size = [4] * (len(shape) - 1)
    starts = torch.tensor([[0] * len(size), [3] * len(size), [n - 4 for n in shape[1:]]])
    assert torch.equal(found.boxes(starts.tolist(), size), read_boxes(expected, starts, size))


def test_only_the_content_is_kept() -> None:
    """What surrounds it is one value, and comes out of a crop as any other voxel."""
    found = looked_up(integers(torch.int16), WINDOW)
    assert found.corner == (2, 2, 2) and found.codes.shape == (1, 8, 6, 5)
    bare = looked_up(integers(torch.int16, border=0), WINDOW)
    assert bare.codes.shape == (1, 12, 10, 9)
    corner, box, outside = content_box(torch.full((2, 5, 4), 7, dtype=torch.int16))
    assert (corner, box.shape, outside) == ((0, 0), (2, 1, 1), (7, 7))
    constant = looked_up(MetaTensor(torch.full((1, 6, 5, 4), 7, dtype=torch.int16)), WINDOW)
    assert torch.equal(constant.as_tensor(), WINDOW({"image": torch.full((1, 6, 5, 4), 7.0)})["image"])


def test_what_no_table_gives_stays_a_volume() -> None:
    """Floats, intensities that depend on neighbours, and integers too far apart."""
    smooth = GaussianSmoothd("image", sigma=1.0)
    for volume, intensity in (
        (integers(torch.int16).float(), WINDOW),
        (integers(torch.int16), smooth),
        (integers(torch.int32) * 100, WINDOW),
    ):
        found = looked_up(volume, intensity)
        assert isinstance(found, MetaTensor)
        assert torch.equal(found.as_tensor(), intensity({"image": volume.clone().float()})["image"].as_tensor())
