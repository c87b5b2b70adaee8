from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from anatomy_ssl.figures.canvas import new_figure
from anatomy_ssl.figures.crops import _draw, _flatten, _upright, crop_overview, crop_overview_image
from tests.figures.pictures import pixels

AFFINE = nib.affines.from_matvec(np.array([[0, 0, 3.0], [-2.0, 0, 0], [0, 1.0, 0]]), [10.0, 40.0, -60.0])
SHAPE = (24, 50, 12)
CENTRES = np.array([[16.0, 10.0, -30.0], [34.0, 0.0, -20.0]])
ROI = (20.0, 10.0, 15.0)


def volume() -> np.ndarray:
    """A ramp with a bright mark at each crop's centre, stored with axes posterior, superior, right."""
    voxels = np.linspace(0, 50, np.prod(SHAPE)).reshape(SHAPE)
    for index in np.rint(nib.affines.apply_affine(np.linalg.inv(AFFINE), CENTRES)).astype(int):
        voxels[tuple(index)] = 200
    return voxels


def test_marks_are_where_the_boxes_are() -> None:
    voxels, spacing, points, roi = _upright(volume(), AFFINE, CENTRES, ROI)
    assert voxels.shape == (12, 24, 50)
    assert spacing == pytest.approx([3, 2, 1])
    assert roi == pytest.approx([15, 20, 10])
    for point in points:
        assert voxels[tuple((point // spacing).astype(int))] == 200
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(np.linalg.norm(CENTRES[0] - CENTRES[1]))


def test_slices_and_projections() -> None:
    voxels, spacing, points, roi = _upright(volume(), AFFINE, CENTRES, ROI)
    plane, met = _flatten(voxels, 2, "max", points, spacing, roi)
    np.testing.assert_array_equal(plane, voxels.max(axis=2))
    assert met.all()
    middle = int(np.median(points[:, 0]) / 3)
    plane, met = _flatten(voxels, 0, "slice", points, spacing, roi)
    np.testing.assert_array_equal(plane, voxels[middle])
    assert not met.any()  # the crops' centres are 18 mm apart, their edge along this axis is 15 mm
    assert _flatten(voxels, 0, "slice", points, spacing, roi + 4)[1].all()
    with pytest.raises(ValueError, match="projection"):
        _flatten(voxels, 0, "median", points, spacing, roi)  # type: ignore[arg-type]


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "IRA"])
def test_the_picture_does_not_depend_on_how_the_volume_is_stored(axcodes: str) -> None:
    image = MetaTensor(torch.from_numpy(volume())[None], affine=torch.from_numpy(AFFINE))
    turned = Orientation(axcodes, labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
    roi = (10.0, 10.0, 10.0)
    expected = crop_overview_image(volume(), CENTRES, roi, AFFINE)
    assert expected.dtype == np.uint8
    assert expected.ndim == 3
    np.testing.assert_array_equal(crop_overview_image(turned, torch.from_numpy(CENTRES), roi), expected)


@pytest.mark.parametrize("projection", ["slice", "max", "mean"])
def test_file(tmp_path: Path, projection: str) -> None:
    path = crop_overview(volume(), CENTRES, ROI, tmp_path / "new" / "crops.png", AFFINE, projection, "patient 1")
    assert path == tmp_path / "new" / "crops.png"
    pixels(path)


def test_the_aspect_ratio_is_that_of_the_body() -> None:
    """Every view is as large as the volume is in mm, in either direction, and drawn with equal axes."""
    with new_figure(10, 4) as figure:
        _draw(figure, volume(), CENTRES, ROI, AFFINE, "slice", "")
    views = [(36, 48), (36, 50), (48, 50)]  # axial: right and front; coronal: right and up; sagittal: front and up
    for axes, size in zip(figure.axes, views):
        assert axes.get_aspect() == 1
        left, right, bottom, top = axes.images[0].get_extent()
        assert (right - left, top - bottom) == pytest.approx(size)
        limits = (axes.get_xlim(), axes.get_ylim())
        assert [abs(high - low) for low, high in limits] == pytest.approx(size)
        boxes = {(box.get_width(), box.get_height()) for box in axes.patches}
        assert len(boxes) == 1
    assert boxes == {(20.0, 10.0)}  # the sagittal view: 20 mm from back to front, 10 mm high


def test_radiograph(tmp_path: Path) -> None:
    radiograph = np.random.default_rng(0).random((1, 60, 40))
    centres = np.array([[20.0, 10.0], [30.0, 30.0]])
    pixels(crop_overview(radiograph, centres, (16, 8), tmp_path / "xray.png", np.eye(4)))
    voxels, spacing, points, _ = _upright(radiograph, np.diag([0.5, 0.25, 1]), centres, (16, 8))
    np.testing.assert_array_equal(voxels, radiograph[0])
    assert points == pytest.approx(centres + spacing / 2)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="no affine"):
        crop_overview_image(volume(), CENTRES, ROI)
    with pytest.raises(ValueError, match="do not fit"):
        crop_overview_image(volume(), CENTRES[:, :2], ROI, AFFINE)
    with pytest.raises(ValueError, match="at least one crop"):
        crop_overview_image(volume(), CENTRES[:0], ROI, AFFINE)
