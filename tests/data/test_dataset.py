"""A cohort with bad images, and crops that are a function of seed, epoch and patient."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import (
    Compose,
    EnsureTyped,
    OneOf,
    Orientationd,
    RandGaussianNoised,
    Randomizable,
    RandShiftIntensityd,
)

from anatomy_ssl.data.dataset import ScanDataset, reseed
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.data.sampler import EpochSampler
from anatomy_ssl.transforms import ForegroundPointsd, LoadVolumed, RandPhysicalCropsd
from tests.volumes import smooth_volume

Write = Callable[..., str]
FAULTS = {
    "truncated": "truncated",
    "small": "is smaller",
    "void": "foreground is empty",
    "missing": "does not exist",
    "nan": "NaN",
}


def chain(**crops: Any) -> list[Any]:
    """Preparation and four crops, as in the bundle."""
    prepare = [LoadVolumed("image"), Orientationd("image", axcodes="RAS", labels=None), ForegroundPointsd("image")]
    return [*prepare, RandPhysicalCropsd("image", (8, 8, 8), 4, candidates="foreground", **crops)]


def good(write: Write, count: int) -> list[dict[str, str]]:
    """Items whose images differ in values and size."""
    shapes = [(16 + i, 14, 12 + i) for i in range(count)]
    files = [write(f"good{i}.nii.gz", smooth_volume(shape, seed=i)) for i, shape in enumerate(shapes)]
    return [{"image": file, "subject": f"p{i}"} for i, file in enumerate(files)]


def bad(write: Write, fault: str) -> dict[str, str]:
    """An item with one fault."""
    path = Path(write(f"{fault}.nii.gz", smooth_volume((7, 14, 12) if fault == "small" else (14, 14, 14))))
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif fault == "missing":
        path.unlink()
    elif fault != "small":
        write(path.name, np.full((14, 14, 14), np.nan if fault == "nan" else 0.0, np.float32))
    return {"image": str(path), "subject": fault}


def dataset(items: list[dict[str, str]], **options: Any) -> ScanDataset:
    """Without a progress bar."""
    return ScanDataset(items, options.pop("transform", None) or chain(), progress=False, **options)


def assert_same_crops(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    """Bit-equal crops at equal places of one patient."""
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x["subject"] == y["subject"]
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(x["position"], y["position"])


@pytest.mark.parametrize("cache_rate", [0.0, 1.0])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_image_stops_the_run(fault: str, cache_rate: float, write_nifti: Write, caplog) -> None:
    """In one line with file and cause: before training where volumes are cached, else when it is reached."""
    items = [*good(write_nifti, 1), bad(write_nifti, fault)]
    with pytest.raises(BadImageError) as caught:
        data = dataset(items, cache_rate=cache_rate)
        assert cache_rate == 0
        assert len(data[0]) == 4
        data[(3, 1)]
    assert str(caught.value).startswith(items[1]["image"])
    assert FAULTS[fault] in str(caught.value)
    assert "\n" not in str(caught.value)
    errors = {record.getMessage() for record in caplog.records if record.levelno == logging.ERROR}
    assert errors == {str(caught.value)} or not (errors or cache_rate)


def test_the_first_of_several_bad_images_is_named(write_nifti: Write) -> None:
    """The order is that of the data list."""
    items = [*good(write_nifti, 1), bad(write_nifti, "void"), bad(write_nifti, "truncated")]
    with pytest.raises(BadImageError, match=r"void\.nii\.gz"):
        dataset(items)


@pytest.mark.parametrize("cache_rate", [0.0, 0.5, 1.0])
def test_skipping_leaves_the_good_images_as_they_are(cache_rate: float, write_nifti: Write, caplog) -> None:
    """One line for each bad image, a count and a list at the end; the others as if the bad had not been there."""
    fine = good(write_nifti, 3)
    faulty = [bad(write_nifti, fault) for fault in FAULTS]
    items = [faulty[0], fine[0], *faulty[1:3], fine[1], fine[2], *faulty[3:]]
    data = dataset(items, on_bad_image="skip", cache_rate=cache_rate)
    names = [Path(item["image"]).name for item in faulty]
    assert [Path(error.path).name for error in data.skipped] == names
    assert len(data) == 3
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    lines = [line for line in warnings if line.startswith("skipped: ")]
    assert sorted(Path(line.split(": ")[1]).name for line in lines) == sorted(names)
    assert not any("\n" in line for line in lines)
    head, *listing = warnings[-1].splitlines()
    assert head == "5 of 8 images were skipped:"
    assert listing == [f"  {error}" for error in data.skipped]
    assert len(warnings) == 6
    alone = dataset(fine)
    for index in range(3):
        assert_same_crops(data[(2, index)], alone[(2, index)])


def test_a_skipping_run_meets_no_bad_image_later(write_nifti: Write) -> None:
    """Too small for the crop, in voxels or in mm, is found before training and not in its middle."""
    items = [*good(write_nifti, 2), bad(write_nifti, "small")]
    for crops in ({}, {"spacing": 2.0}):
        for cache_rate in (0.0, 1.0):
            data = dataset(items, transform=chain(**crops), on_bad_image="skip", cache_rate=cache_rate)
            assert [error.path for error in data.skipped] == [items[2]["image"]]
            assert len([data[(epoch, index)] for epoch in range(3) for index in range(len(data))]) == 6


def test_the_file_is_named_where_metadata_are_gone(write_nifti: Write) -> None:
    """As in paper.yaml, which takes the voxels for millimetres."""
    *prepare, crops = chain()
    voxels = [EnsureTyped("image", track_meta=False), EnsureTyped("image", track_meta=True)]
    item = bad(write_nifti, "small")
    with pytest.raises(BadImageError) as caught:
        dataset([item], transform=[*prepare, *voxels, crops])
    assert str(caught.value).startswith(f"{item['image']}: is smaller")


def test_nothing_left(write_nifti: Write) -> None:
    """A run without images says why."""
    with pytest.raises(ValueError, match=r"no image is left of 2: .*void\.nii\.gz.*truncated\.nii\.gz"):
        dataset([bad(write_nifti, "void"), bad(write_nifti, "truncated")], on_bad_image="skip")
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        dataset(good(write_nifti, 1), on_bad_image="ignore")


def test_a_fault_that_is_not_the_images_is_no_reason_to_skip(write_nifti: Write) -> None:
    """A mistake in the transforms stops the run even under skip."""
    broken = [*chain()[:-1], Orientationd("label", axcodes="RAS", labels=None), chain()[-1]]
    with pytest.raises(RuntimeError, match="Orientationd"):
        dataset(good(write_nifti, 1), transform=broken, on_bad_image="skip")


def test_crops_are_a_function_of_seed_epoch_and_index(write_nifti: Write) -> None:
    """Whatever was drawn before, from whichever cache; and each of the three changes them."""
    items = good(write_nifti, 3)
    keys = [(epoch, index) for epoch in (0, 1, 5) for index in range(3)]
    data = dataset(items, seed=4)
    first = {key: data[key] for key in keys}
    for cache_rate in (0.0, 0.5, 1.0):
        other = dataset(items, seed=4, cache_rate=cache_rate)
        for key in [*reversed(keys), keys[4]]:
            assert_same_crops(first[key], other[key])
    assert_same_crops(first[(0, 1)], data[1])
    twins = dataset([items[0], items[0]], seed=4)
    drawn = [*(first[(epoch, 0)] for epoch in (0, 1, 5)), twins[(0, 1)], dataset(items, seed=5)[0]]
    positions = [torch.stack([crop["position"] for crop in crops]) for crops in drawn]
    for i, a in enumerate(positions):
        assert all(not torch.equal(a, b) for b in positions[:i])


def test_drawing_changes_nothing_in_memory(write_nifti: Write) -> None:
    """Cached volumes are not copied for each draw, so crops must not write into them."""
    data = dataset(good(write_nifti, 1))
    before = data.prepared(0)["image"].clone()
    for crop in data[(1, 0)]:
        crop["image"] += 1
    assert torch.equal(data.prepared(0)["image"], before)
    assert torch.equal(dataset(good(write_nifti, 1), cache_rate=0.0).prepared(0)["image"], before)


@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (3, "fork"), (1, "spawn")])
def test_workers_change_no_crop(workers: int, start: str, write_nifti: Write) -> None:
    """Any number, forked or spawned, cached or not."""
    data = dataset(good(write_nifti, 3), cache_rate=0.5)

    def epochs(**options: Any) -> list[dict[str, Any]]:
        sampler = EpochSampler(data, seed=1)
        loader = DataLoader(data, sampler=sampler, batch_size=2, **options)
        batches = []
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            batches += list(loader)
        return batches

    there = epochs(num_workers=workers, multiprocessing_context=start, persistent_workers=True)
    here = epochs(num_workers=0)
    assert len(here) == len(there) == 4
    for a, b in zip(here, there):
        assert a["subject"] == b["subject"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["position"], b["position"])


def test_a_worker_names_the_file(write_nifti: Write) -> None:
    """The message comes back from the worker's process."""
    data = dataset([bad(write_nifti, "void")], cache_rate=0.0)
    with pytest.raises(Exception, match=r"void\.nii\.gz: its foreground is empty"):
        list(DataLoader(data, num_workers=1))


def test_slices(write_nifti: Write) -> None:
    """MONAI's subsets go on working."""
    data = dataset(good(write_nifti, 3))
    assert_same_crops(data[1:][0], data[1])


def test_seeding_anew_draws_what_monai_draws() -> None:
    """Also with transforms that seed others in them, and never through the generator that the class shares."""

    def transforms() -> Compose:
        one_of = OneOf([RandGaussianNoised("image", prob=1.0), RandShiftIntensityd("image", 1.0, prob=1.0)])
        return Compose([RandGaussianNoised("image", prob=0.5), one_of, RandShiftIntensityd("image", 1.0, prob=1.0)])

    ours, theirs = transforms(), transforms()
    shared = str(Randomizable.R.get_state())
    for seed in (3, 3, 2**32 - 1, 4):
        reseed(ours, seed)
        theirs.set_random_state(seed=seed)
        found = [chain({"image": torch.zeros(1, 4, 4)})["image"] for chain in (ours, theirs)]
        assert torch.equal(*found) and found[0].abs().sum() > 0
    assert str(Randomizable.R.get_state()) == shared
