"""Points that say where crops may lie, in world mm however the volume is stored."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd, Orientationd, SpatialPadd

from anatomy_ssl.transforms.points import (
    AnatomicalOrigind,
    ForegroundPointsd,
    LabelPointsd,
    body_mask,
    label_mask,
    label_points,
    otsu_threshold,
    voxel_to_world,
)
from tests.volumes import smooth_volume

AFFINE = nib.affines.from_matvec(
    np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([2.0, 2.0, 3.0]), [-40.0, 25.0, 7.0]
)


def image(values: np.ndarray, affine: np.ndarray = AFFINE) -> MetaTensor:
    """`(1, *spatial)` with an affine."""
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(values)).float()[None], affine=torch.from_numpy(affine))


def as_set(points: torch.Tensor) -> set[tuple[float, ...]]:
    """Points to the hundredth of a millimetre, without order."""
    return {tuple(row) for row in (points.double() * 100).round().int().tolist()}


@pytest.mark.parametrize("dims", [2, 3])
def test_world_positions_are_those_of_nibabel(dims: int) -> None:
    """float32 of what is computed in float64."""
    affine = AFFINE if dims == 3 else np.array([[0.5, 0.1, 3.0], [0.0, 0.7, 4.0], [0.0, 0.0, 1.0]])
    index = np.random.default_rng(0).integers(0, 500, (20, dims))
    world = voxel_to_world(torch.from_numpy(affine).float(), torch.from_numpy(index))
    assert world.dtype == torch.float32
    assert np.allclose(world, nib.affines.apply_affine(affine, index), atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_the_threshold_of_largest_between_class_variance(seed: int) -> None:
    """By trying every threshold."""
    rng = np.random.default_rng(seed)
    bright = rng.normal(rng.uniform(3, 8), 1.5, 100 * rng.integers(5, 50))
    values = rng.permutation(np.concatenate([rng.normal(0, 1, 3000), bright])).reshape(10, 10, -1)

    def between(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(t) for t in np.linspace(values.min(), values.max(), 500)[1:-1])
    assert between(otsu_threshold(values)) > 0.999 * best


def test_otsu_follows_the_scale_of_intensities() -> None:
    """CT, MR or arbitrary units: the same voxels are parted."""
    values = smooth_volume((12, 12, 12)).astype(float)
    assert otsu_threshold(3 * values - 1000) == pytest.approx(3 * otsu_threshold(values) - 1000, rel=1e-6)


def test_the_body_is_the_largest_region_with_its_holes_filled() -> None:
    """Not the table beside it; lungs count, and an airway that leads out of them does not empty them."""
    volume = np.zeros((24, 24, 24))
    volume[4:20, 4:20, 2:22] = 100
    volume[8:16, 8:16, 6:18] = 0  # a cavity
    volume[11:13, 11:13, 18:] = 0  # that opens outwards
    body = np.zeros(volume.shape, dtype=bool)
    body[4:20, 4:20, 2:22] = True
    volume[0:2, :, 3:21] = 100
    assert np.array_equal(body_mask(volume), body)
    assert np.array_equal(body_mask(volume, threshold=99.0), body)
    assert not body_mask(volume, threshold=101.0).any()
    assert not body_mask(np.full((4, 4, 4), 7.0)).any()
    ring = np.zeros((9, 9))
    ring[1:8, 1:8], ring[3:6, 3:6] = 1, 0
    assert body_mask(ring).sum() == 49


@pytest.mark.parametrize("step", [1.0, 4.0, 8.0])
def test_foreground_points_lie_on_body_voxels_about_a_step_apart(step: float) -> None:
    """Never finer than the voxels."""
    volume = smooth_volume((20, 18, 22))
    points = ForegroundPointsd("image", step=step)({"image": image(volume)})["foreground"]
    index = nib.affines.apply_affine(np.linalg.inv(AFFINE), points.numpy())
    assert np.abs(index - index.round()).max() < 1e-3
    stride = [max(1, round(step / s)) for s in (2.0, 2.0, 3.0)]
    for axis in range(3):
        assert set(np.diff(np.unique(index[:, axis].round()))) == {stride[axis]}
    inside = body_mask(volume)[tuple(index.round().astype(int).T)]
    assert inside.mean() > 0.95  # a coarse grid sees the surface coarsely
    assert step > 1 or inside.all()


def test_points_do_not_depend_on_the_storage_and_outlive_what_follows() -> None:
    """All 48 orientations give the same points in the world; flips and pads after them change none."""
    label = (smooth_volume((7, 6, 8)) > 500).astype(np.int16)
    stored = nib.Nifti1Image(label, AFFINE)
    first = as_set(label_points(image(label)))
    assert len(first) == label.sum()
    after = Compose([Flipd("image", 0), SpatialPadd("image", (12, 12, 12)), Orientationd("image", "LPS", labels=None)])
    for axes, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        other = stored.as_reoriented(np.array(list(zip(axes, flips))))
        volume = image(np.asarray(other.dataobj), other.affine)
        assert as_set(ForegroundPointsd("image", step=1.0)({"image": volume})["foreground"]) == first
        assert as_set(LabelPointsd("image")({"image": volume})["label_points"]) == first
        assert as_set(label_points(after({"image": volume})["image"])) == first


def test_labels_are_chosen_and_thinned_evenly() -> None:
    """Some values or any but zero; a subset from the first to the last; an absent label gives no points."""
    label = np.zeros((10, 10, 10))
    label[2:6] = 1
    label[7:9] = 4
    item = {"label": image(label, np.eye(4))}
    assert len(LabelPointsd("label")(item)["label_points"]) == 600
    assert len(LabelPointsd("label", labels=[4, 9])(item)["label_points"]) == 200
    thin = LabelPointsd("label", "few", labels=[1], max_points=40)(item)["few"]
    assert len(as_set(thin)) == 40
    assert thin[0].tolist() == [2, 0, 0]
    assert thin[-1].tolist() == [5, 9, 9]
    assert LabelPointsd("label", labels=[9])(item)["label_points"].shape == (0, 3)


def test_label_values_survive_resampling_noise() -> None:
    """Values near a whole number are that number."""
    values = torch.tensor([0.0, 1e-4, 0.9999, 2.0001, 3.0])
    assert label_mask(values).tolist() == [False, False, True, True, True]
    assert label_mask(values, [2, 3]).tolist() == [False, False, False, True, True]


def test_without_a_label_the_origin_is_the_middle_of_the_bodys_box() -> None:
    """Anatomy that is moved takes its origin along."""
    volume = np.zeros((20, 20, 20))
    volume[4:10, 6:16, 2:8] = 1
    origins = []
    for shift in (0.0, 30.0):
        affine = np.eye(4)
        affine[:3, 3] = shift
        item = ForegroundPointsd("image", step=1.0)({"image": image(volume, affine)})
        origins.append(AnatomicalOrigind("label")(item)["origin"])
    assert origins[0].tolist() == [6.5, 10.5, 4.5]
    assert torch.equal(origins[1], origins[0] + 30)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("threshold", [None, 60.5])
def test_points_of_integers_are_those_of_floats(dtype: torch.dtype, threshold: float | None) -> None:
    """The same foreground, labels and origins, also for labels that the type does not hold."""
    floats = image(smooth_volume((20, 18, 22)).clip(0) // 8)
    whole = MetaTensor(floats.as_tensor().to(dtype), affine=floats.affine)
    steps = [ForegroundPointsd("image", threshold=threshold, step=s) for s in (2.0, 8.0)]
    labels = [None, [0], [60, 61, 62, 700, -1], list(range(50, 90))]
    for transform in [*steps, *[LabelPointsd("image", "foreground", chosen) for chosen in labels]]:
        points = [transform({"image": volume})["foreground"] for volume in (floats, whole)]
        assert len(points[0]) > 0
        assert torch.equal(points[0], points[1])
    for chosen in ([60, 61], None):
        prepared = [steps[0]({"image": volume}) for volume in (floats, whole)]
        origins = [AnatomicalOrigind("image", chosen)(item)["origin"] for item in prepared]
        assert torch.equal(origins[0], origins[1])
