"""Crops are where they say they are, whatever was done to the volume before and however it is stored."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Affined,
    Compose,
    CropForegroundd,
    Flipd,
    Orientationd,
    RandSpatialCropSamplesd,
    Spacingd,
    SpatialPadd,
)

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms import CropPositiond, LoadVolumed, RandPhysicalCropsd, crops_at
from tests.volumes import ramp_volume

OBLIQUE = nib.affines.from_matvec(
    np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([2.0, 2.0, 3.0]), [-40.0, 25.0, 7.0]
)


BEFORE = {
    "nothing": [],
    "spacing": [Spacingd("image", pixdim=(1.5, 2.5, 2.0))],
    "orientation": [Orientationd("image", axcodes="PIR", labels=None)],
    "flip": [Flipd("image", spatial_axis=(0, 2))],
    "pad": [SpatialPadd("image", (40, 40, 40), mode="edge")],
    "crop": [CropForegroundd("image", source_key="image", select_fn=lambda x: x[2:] > 30)],
    "affine": [
        Affined("image", rotate_params=(0.1, 0.0, 0.2), translate_params=(2.0, 0.0, 1.0), padding_mode="border")
    ],
    "all": [
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=(2.5, 2.5, 2.5)),
        Flipd("image", spatial_axis=1),
    ],
}


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
@pytest.mark.parametrize("spacing", [None, (2.0, 2.5, 3.0)], ids=["voxels", "mm"])
@pytest.mark.parametrize("before", BEFORE)
def test_position_is_the_mean_of_the_voxels_own_coordinates(before: str, spacing, lazy: bool) -> None:
    """In a volume of world coordinates, a crop's mean value is its centre, after any spatial transform, lazy or not."""
    if lazy and before == "crop":
        pytest.skip("CropForegroundd looks at values, so MONAI evaluates what is pending anyway")
    chain = Compose([*BEFORE[before], RandPhysicalCropsd("image", (8, 6, 10), 12, spacing=spacing)], lazy=lazy)
    chain.set_random_state(seed=3)
    checked = 0
    for crop in chain({"image": ramp_volume(OBLIQUE, (34, 30, 36))}):
        values = crop["image"].flatten(1)
        middle = (values.amin(1) + values.amax(1)) / 2
        # a linear ramp is symmetric about its centre; where padding repeats the border, it is no ramp any more
        if (middle - values.mean(1)).abs().max() < 0.02:
            checked += 1
            assert torch.allclose(values.mean(1), crop["position"], atol=0.05)
    assert checked >= (12 if before in ("nothing", "orientation", "flip", "crop") else 3)


def test_distances_do_not_depend_on_storage_orientation_spacing_or_origin() -> None:
    """All 48 axis permutations and flips of one volume give the same mm crops at the same world positions."""
    volume = ramp_volume(np.diag([2.0, 2.5, 3.0, 1.0]), (20, 22, 24)).sum(0, keepdim=True).sin()
    centres = torch.tensor([[15.0, 20.0, 30.0], [22.0, 30.0, 40.0]])
    crops, position = crops_at(volume, centres, (6, 6, 6), (2.0, 2.0, 2.0))
    image = nib.Nifti1Image(volume[0].numpy(), volume.affine.numpy())
    count = 0
    for permutation, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        stored = image.as_reoriented(np.array(list(zip(permutation, flips))))
        other = MetaTensor(torch.from_numpy(np.array(stored.dataobj))[None], affine=torch.from_numpy(stored.affine))
        same, there = crops_at(other, centres, (6, 6, 6), (2.0, 2.0, 2.0))
        assert torch.allclose(same, crops, atol=1e-5)
        assert torch.allclose(there, position, atol=1e-4)
        count += 1
    assert count == 48


def test_voxel_crops_change_no_value() -> None:
    """Without spacing a crop is a box of the volume itself."""
    volume = MetaTensor(torch.randn(2, 12, 13, 14), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    crops, position = crops_at(volume, torch.tensor([[5.5, 11.0, 18.0]]), (4, 5, 6))
    start = (position[0] / torch.tensor([1.0, 2.0, 3.0]) - torch.tensor([1.5, 2.0, 2.5])).round().int().tolist()
    box = [slice(s, s + r) for s, r in zip(start, (4, 5, 6))]
    assert torch.equal(crops[0], volume.as_tensor()[(slice(None), *box)])


def test_mm_crops_cover_the_same_tissue_at_two_spacings() -> None:
    """One anatomy in two voxel spacings gives (nearly) one crop: the physical size is what counts."""
    fine = ramp_volume(np.diag([1.0, 1.0, 1.0, 1.0]), (40, 40, 40))
    coarse = ramp_volume(np.diag([2.0, 3.0, 1.5, 1.0]), (20, 14, 27))
    centre = torch.tensor([[19.0, 18.0, 20.0]])
    a, at = crops_at(fine, centre, (8, 8, 8), (2.0, 2.0, 2.0))
    b, bt = crops_at(coarse, centre, (8, 8, 8), (2.0, 2.0, 2.0))
    assert torch.allclose(a, b, atol=1e-3)
    assert torch.equal(at, bt)


def test_two_dimensions_and_channels() -> None:
    """Radiographs and images of several channels take the same path."""
    affine = np.array([[0.5, 0.0, 3.0], [0.0, 0.7, 4.0], [0.0, 0.0, 1.0]])
    volume = ramp_volume(affine, (40, 30))
    items = RandPhysicalCropsd("image", (8, 8), 5).set_random_state(0)({"image": volume, "subject": "p"})
    for item in items:
        assert item["image"].shape == (2, 8, 8)
        assert torch.allclose(item["image"].flatten(1).mean(1), item["position"], atol=1e-4)
        assert item["subject"] == "p"


def test_same_seed_same_crops() -> None:
    """Crops are a function of the seed."""
    volume = ramp_volume(OBLIQUE, (34, 30, 36))
    draw = RandPhysicalCropsd("image", (8, 8, 8), 4)
    first = draw.set_random_state(1)({"image": volume})
    again = draw.set_random_state(1)({"image": volume})
    other = draw.set_random_state(2)({"image": volume})
    assert all(torch.equal(a["position"], b["position"]) for a, b in zip(first, again))
    assert any(not torch.equal(a["position"], b["position"]) for a, b in zip(first, other))


def test_candidates_are_respected() -> None:
    """Centres follow the candidate sets and their shares; an empty set leaves its share to the others."""
    volume = ramp_volume(np.eye(4), (60, 60, 60))
    sets = {"near": torch.full((1, 3), 15.0), "far": torch.full((1, 3), 45.0), "none": torch.zeros(0, 3)}
    draw = RandPhysicalCropsd("image", (3, 3, 3), 400, candidates={"near": 0.75, "far": 0.25}, jitter=0.5)
    x = torch.stack([c["position"] for c in draw.set_random_state(0)({"image": volume, **sets})])[:, 0]
    assert 0.68 < (x < 30).float().mean() < 0.82
    assert ((x - 15).abs() < 1.1).logical_or((x - 45).abs() < 1.1).all()
    draw = RandPhysicalCropsd("image", (3, 3, 3), 20, candidates={"none": 0.5, "far": 0.5}, jitter=0.0)
    items = draw.set_random_state(0)({"image": volume, **sets})
    assert all(abs(float(c["position"][0]) - 45) < 1 for c in items)
    assert all("far" not in c and "none" not in c for c in items)


def test_centres_without_candidates_fill_the_volume() -> None:
    """Uniform sampling reaches every part of the volume that a crop can be centred in."""
    volume = ramp_volume(np.diag([1.0, 2.0, 1.0, 1.0]), (30, 30, 30))
    items = RandPhysicalCropsd("image", (10, 10, 10), 500).set_random_state(0)({"image": volume})
    voxel = torch.stack([c["position"] for c in items]) / torch.tensor([1.0, 2.0, 1.0])
    assert torch.equal(voxel.amin(0).round(decimals=3), torch.full((3,), 4.5))
    assert torch.equal(voxel.amax(0).round(decimals=3), torch.full((3,), 24.5))


def test_label_is_cut_at_the_same_place() -> None:
    """Image and label map of different grids stay aligned in mm crops."""
    image = ramp_volume(np.diag([1.0, 1.0, 1.0, 1.0]), (40, 40, 40))
    label = ramp_volume(np.diag([2.0, 2.0, 2.0, 1.0]), (20, 20, 20))
    draw = RandPhysicalCropsd(["image", "label"], (5, 5, 5), 6, spacing=2.0, mode=("bilinear", "bilinear"))
    for item in draw.set_random_state(0)({"image": image, "label": label}):
        assert torch.allclose(item["image"], item["label"], atol=1.01)


def test_a_volume_smaller_than_the_crop_is_named(write_nifti) -> None:
    """The message holds the file, both sizes and the remedy."""
    d = LoadVolumed("image")({"image": write_nifti("tiny.nii.gz")})
    with pytest.raises(BadImageError, match=r"tiny\.nii\.gz: is smaller \(\(24, 20, 28\) voxels\).*crop_size"):
        RandPhysicalCropsd("image", (32, 32, 32))(d)
    with pytest.raises(BadImageError, match="smaller"):
        RandPhysicalCropsd("image", (16, 16, 16), spacing=4.0)(d)


@pytest.mark.parametrize("kwargs", [{"num_samples": 0}, {"roi_size": (0, 4, 4)}, {"candidates": {"a": 0.7, "b": 0.7}}])
def test_wrong_arguments_raise(kwargs: dict) -> None:
    """Sizes and shares are checked at construction."""
    with pytest.raises(ValueError):
        RandPhysicalCropsd("image", **{"roi_size": (4, 4, 4), **kwargs})


def test_crop_position_serves_monai_crops() -> None:
    """CropPositiond gives positions to crops that MONAI's own transforms cut."""
    chain = Compose([RandSpatialCropSamplesd("image", (6, 6, 6), 5, random_size=False), CropPositiond("image")])
    chain.set_random_state(0)
    for item in chain({"image": ramp_volume(OBLIQUE, (20, 20, 20))}):
        assert torch.allclose(item["image"].as_tensor().flatten(1).mean(1), item["position"], atol=1e-3)


@pytest.mark.parametrize("spacing", [None, 2.0])
def test_a_label_map_that_lies_elsewhere_is_refused(spacing: float | None) -> None:
    """Coarser voxels without resampling, or a volume that the crops would have to leave: neither is cut in silence."""
    image = ramp_volume(np.diag([2.0, 2.0, 2.0, 1.0]), (20, 20, 20))
    crops = RandPhysicalCropsd(["image", "label"], (8, 8, 8), 3, spacing=spacing, mode=["bilinear", "nearest"])
    coarse = ramp_volume(np.diag([4.0, 4.0, 4.0, 1.0]), (10, 10, 10))
    away = np.diag([2.0, 2.0, 2.0, 1.0])
    away[0, 3] = 100.0
    assert len(crops({"image": image, "label": image})) == 3
    with pytest.raises(BadImageError, match="does not lie on the voxel grid"):
        crops({"image": image, "label": ramp_volume(away, (20, 20, 20))})
    if spacing is None:
        with pytest.raises(BadImageError, match="does not lie on the voxel grid"):
            crops({"image": image, "label": coarse})
