"""Label maps as classes of voxels and of crops, as volumes, and on the ground of their images."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd

from anatomy_ssl.transforms import RandPhysicalCropsd
from anatomy_ssl.transforms.labels import CheckCoveraged, ClassIndexd, LabelPresenced, LabelVolumed

AFFINE = nib.affines.from_matvec(
    np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([2.0, 2.0, 3.0]), [-40.0, 25.0, 7.0]
)


def image(values: np.ndarray, affine: np.ndarray = AFFINE) -> MetaTensor:
    """`(1, *spatial)` with an affine."""
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(values)).float()[None], affine=torch.from_numpy(affine))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ({"lesion": None}, [0, 1, 1, 1]),
        ({"b": 7, "a": 2}, [0, 2, 0, 1]),
        ({"both": [2, 7], "five": 5}, [0, 1, 2, 1]),
        ({"any": None, "five": 5}, [0, 1, 2, 1]),
    ],
)
def test_values_become_indices(classes: dict[str, Any], expected: list[int]) -> None:
    values = torch.tensor([0, 2, 5, 7])[torch.arange(60).reshape(1, 3, 4, 5) % 4]
    result = ClassIndexd("label", classes)({"label": image(values[0].numpy())})["label"]
    assert isinstance(result, MetaTensor)
    assert np.array_equal(result.affine, AFFINE)
    assert torch.equal(result.as_tensor(), torch.tensor(expected)[torch.arange(60).reshape(1, 3, 4, 5) % 4].float())


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_the_volume_of_a_crops_label_is_in_cubic_millimetres(spacing: tuple[float, ...] | None) -> None:
    """Counted voxels times their size, whatever the label's value; the map itself goes."""
    label = np.zeros((30, 30, 30))
    label[10:20, 12:18, 8:16] = 7
    affine = np.diag([1.0, 2.0, 1.5, 1.0])
    item = {"image": image(label, affine), "lesion": image(label, affine)}
    true = 10 * 6 * 8 * 3.0
    size = (20, 12, 16) if spacing is None else (14, 18, 12)
    crops = RandPhysicalCropsd(
        ["image", "lesion"], size, 5, spacing, candidates={"centre": 1.0}, jitter=0.5, mode=["bilinear", "nearest"]
    ).set_random_state(0)({**item, "centre": torch.tensor([[14.5, 29.0, 17.25]])})
    for crop in crops:
        cut = crop["lesion"]
        done = LabelVolumed("lesion")(crop)
        assert "lesion" not in done
        assert done["lesion_volume"].dtype == torch.float32
        assert done["lesion_volume"] == (cut == 7).sum() * (3.0 if spacing is None else 8.0)
        assert float(done["lesion_volume"]) == pytest.approx(true, rel=0.0 if spacing is None else 0.25)
        assert LabelVolumed("lesion", labels=[3])(crop)["lesion_volume"] == 0


def test_an_area_in_two_dimensions() -> None:
    """Radiographs: mm^2."""
    crop = {"mask": torch.ones(1, 4, 5), "crop_spacing": torch.tensor([0.5, 2.0])}
    assert LabelVolumed("mask", volume_key="area")(crop)["area"] == 20


def test_presence_of_classes() -> None:
    """One number for each class, in their order; a class may take in others, and one voxel is enough."""
    values = np.zeros((4, 5, 6))
    values[1, 2, 3] = 7.0
    values[0, 0, 0] = 2.0
    classes = {"seven": [7], "two or nine": [9, 2], "three": [3], "any": None, "a single value": 7}
    item = LabelPresenced("mask", classes)({"mask": image(values).as_tensor(), "image": 1})
    assert item.keys() == {"image", "label"}
    assert item["label"].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert item["label"].dtype == torch.float32
    empty = LabelPresenced("mask", classes, presence_key="there")({"mask": torch.zeros(1, 4, 5, 6)})
    assert empty["there"].tolist() == [0.0] * 5
    with pytest.raises(ValueError, match="give the names and label values"):
        LabelPresenced("mask", {})


def test_presence_is_that_of_a_volume_above_zero() -> None:
    """Whatever the labels, LabelVolumed and LabelPresenced agree on which crops are positive."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = torch.from_numpy((rng.random((1, 4, 4, 4)) > 0.98) * rng.integers(1, 4, (1, 4, 4, 4))).float()
        labels = [[1], [2, 3], None][rng.integers(3)]
        volume = LabelVolumed("m", labels)({"m": crop, "crop_spacing": [2.0, 2.0, 2.0]})["lesion_volume"]
        assert LabelPresenced("m", {"a": labels})({"m": crop})["label"].tolist() == [float(volume > 0)]


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR"])
def test_a_label_map_covers_its_image(orientation: str) -> None:
    """On the image's grid, on a coarser one, or larger; stored in whatever way; rounded headers pass."""
    scan = image(np.zeros((20, 18, 16)))
    shifted = AFFINE.copy()
    shifted[:3, 3] += 0.4
    coarse = AFFINE @ np.diag([2.0, 2.0, 2.0, 1.0])
    fine = [image(np.zeros((20, 18, 16))), image(np.zeros((20, 18, 16)), shifted), image(np.zeros((40, 30, 30)))]
    for label in (*fine, image(np.zeros((10, 9, 8)), coarse)):
        turned = Orientationd("label", orientation, labels=None)({"label": label})["label"]
        CheckCoveraged("label")({"image": scan, "label": turned})


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAR"])
def test_a_label_map_that_is_short_is_refused(orientation: str) -> None:
    """Some slices fewer, another place, another spacing: named with both files."""
    scan = image(np.zeros((20, 18, 16)))
    scan.meta["filename_or_obj"] = "scan.nii"
    shifted = AFFINE.copy()
    shifted[:3, 3] += 30
    finer = AFFINE @ np.diag([1.0, 1.0, 0.5, 1.0])
    short = [
        image(np.zeros((20, 18, 13))),
        image(np.zeros((20, 18, 16)), shifted),
        image(np.zeros((20, 18, 16)), finer),
    ]
    for label in short:
        label.meta["filename_or_obj"] = "mask.nii"
        turned = Orientationd("label", orientation, labels=None)({"label": label})["label"]
        with pytest.raises(ValueError, match=r"mask\.nii: does not cover scan\.nii"):
            CheckCoveraged("label")({"image": scan, "label": turned})


@pytest.mark.parametrize("classes", [{}, ["liver"], {"liver": "eleven"}, {"liver": [1.5]}, {"liver": True}])
def test_classes_that_are_no_names_with_values_are_refused(classes: Any) -> None:
    """With the name of the class, before any image is read."""
    for transform in (ClassIndexd, LabelPresenced):
        with pytest.raises(ValueError, match=r"^class(es is|\ 'liver').*: give"):
            transform("label", classes)
