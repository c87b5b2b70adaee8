"""Percentiles of integers by a histogram, and intensities by a table, are what MONAI computes of the voxels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentilesd

from anatomy_ssl.transforms.intensity import ScaleRangePercentilesd, histogram, percentile
from tests.volumes import smooth_volume

SETTINGS = [
    {"lower": 5, "upper": 95, "b_min": -1, "b_max": 1, "channel_wise": True},
    {"lower": 0.5, "upper": 99.5, "b_min": 0.0, "b_max": 1.0, "clip": True, "channel_wise": False},
    {"lower": 0, "upper": 100, "b_min": 0.0, "b_max": 255.0, "clip": True, "channel_wise": True},
    {"lower": 33.3, "upper": 66.7, "b_min": None, "b_max": None, "channel_wise": True},
]


def volume(shape: tuple[int, ...], dtype: torch.dtype, channels: int = 2) -> MetaTensor:
    """Channels of one texture and other ranges."""
    values = torch.stack([torch.from_numpy(smooth_volume(shape, seed=c)) * (1 + c) for c in range(channels)])
    values = (values / 16 if torch.empty(0, dtype=dtype).element_size() == 1 else values).to(torch.int32)
    values = values.clamp(min=0) if dtype == torch.uint8 else values
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    return MetaTensor(values.to(dtype), affine=affine, meta={"filename_or_obj": "scan.nii.gz"})


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", [(30, 20), (12, 14, 10)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32])
def test_the_same_as_monai(settings: dict, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Whose own result for integers is that of floats; values, type, affine and metadata."""
    image = volume(shape, dtype)
    before = image.clone()
    ours = ScaleRangePercentilesd("image", **settings)({"image": image})["image"]
    theirs = ScaleIntensityRangePercentilesd("image", **settings)({"image": image.float()})["image"]
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor(), rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.affine, image.affine)
    assert ours.meta["filename_or_obj"] == "scan.nii.gz"
    assert torch.equal(image, before)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_large_volumes_are_the_same_as_in_monai(dtype: torch.dtype) -> None:
    """Above a million voxels MONAI takes numpy's percentiles, and ours are counted in several parts."""
    random = torch.Generator().manual_seed(0)
    image = MetaTensor((torch.randn(1, 128, 128, 70, generator=random) * 300 - 400).round().to(dtype))
    settings = {"lower": 5, "upper": 95, "b_min": -1, "b_max": 1, "channel_wise": True}
    ours = ScaleRangePercentilesd("image", **settings)({"image": image})["image"]
    theirs = ScaleIntensityRangePercentilesd("image", **settings)({"image": image.float()})["image"]
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("few", [0, 3])
def test_where_the_percentiles_are_the_same(few: int, clip: bool) -> None:
    """Constant images, and such as are but for a few voxels: moved to b_min, as in MONAI, which warns."""
    values = torch.full((1, 10, 10, 10), 7, dtype=torch.int16)
    values[0, 0, 0, :few] = 50
    settings = {"lower": 5, "upper": 95, "b_min": -1, "b_max": 1, "clip": clip, "channel_wise": True}
    with pytest.warns(Warning, match="Divide by zero"):
        ours = ScaleRangePercentilesd("image", **settings)({"image": MetaTensor(values)})["image"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ScaleIntensityRangePercentilesd("image", **settings)({"image": MetaTensor(values.float())})["image"]
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())
    assert ours.as_tensor()[0, 5, 5, 5] == -1


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_voxel_is_looked_up_in_the_table(settings: dict, dtype: torch.dtype) -> None:
    """Bit by bit, whether the table holds levels that do not occur or not."""
    image = volume((13, 11, 9), dtype)
    transform = ScaleRangePercentilesd("image", **settings)
    scaled = transform({"image": image})["image"].as_tensor()
    for c, channel in enumerate(image.as_tensor()):
        counted = channel if settings["channel_wise"] else image.as_tensor()
        levels, counts = torch.unique(counted, return_counts=True)
        table = transform.table(levels.float(), counts)
        assert table.dtype == torch.float32
        assert torch.equal(table[torch.searchsorted(levels, channel)], scaled[c])
        wide = torch.arange(-1500, 6000)
        table = transform.table(wide.float(), (wide[:, None] == levels).long() @ counts)
        assert torch.equal(table[channel.long() + 1500], scaled[c])


@pytest.mark.parametrize("q", [0, 0.1, 5, 33.3, 50, 95, 99.99, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 100, 10_001])
def test_percentiles_are_those_of_numpy(q: float, count: int) -> None:
    values = np.random.default_rng(count).integers(-200, 200, count) * 3
    levels, counts = np.unique(values, return_counts=True)
    ours = percentile(torch.from_numpy(levels).float(), torch.from_numpy(counts), q)
    assert float(ours) == pytest.approx(np.percentile(values, q), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_histogram_counts_every_value(dtype: torch.dtype) -> None:
    """From end to end of a type, in any order of the axes, and leaves the values as they are."""
    limits = torch.iinfo(torch.int16 if dtype in (torch.int32, torch.int64) else dtype)
    random = torch.Generator().manual_seed(0)
    values = torch.randint(limits.min, limits.max + 1, (40, 30, 20), generator=random).to(dtype)
    values[0, 0, 0], values[1, 1, 1] = limits.min, limits.max
    before = values.clone()
    for view in (values, values.permute(2, 0, 1), MetaTensor(values)):
        lowest, counts = histogram(view)
        assert (lowest, len(counts)) == (limits.min, limits.max - limits.min + 1)
        assert np.array_equal(counts, np.bincount(before.numpy().ravel().astype(int) - lowest))
    assert torch.equal(values, before)
    assert histogram(torch.tensor([5], dtype=dtype)) == (5, torch.tensor([1]))


def test_bad_percentiles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 100\]"):
        ScaleRangePercentilesd("image", lower=-1, upper=95, b_min=0, b_max=1)
