"""Crops around a point stay there at the border, and are those of `crops_at` inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from anatomy_ssl.transforms.crops import crops_at
from anatomy_ssl.transforms.padded_crops import inside_volume, padded_crops_at
from tests.volumes import ramp_volume

AFFINE = np.array([[2.0, 0, 0, -10], [0, 3.0, 0, 5], [0, 0, 2.5, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_inside_they_are_plain_crops(spacing: tuple | None) -> None:
    volume = ramp_volume(AFFINE, (20, 18, 22))
    centres = torch.tensor([[9.0, 30.0, 33.0], [11.3, 28.1, 35.7]])
    crops, places = padded_crops_at(volume, centres, (5, 6, 4), spacing)
    expected, expected_places = crops_at(volume, centres, (5, 6, 4), spacing)
    torch.testing.assert_close(crops, expected)
    torch.testing.assert_close(places, expected_places)


@pytest.mark.parametrize("spacing", [None, (2.0, 3.0, 2.5)])
@pytest.mark.parametrize("place", ["corner", "outside", "around"])
def test_what_lies_outside_is_the_minimum(place: str, spacing: tuple | None) -> None:
    """Voxels of the volume keep their values and places; the crop is compared with a volume that was padded before."""
    volume = ramp_volume(AFFINE, (7, 6, 8))
    centre = {"corner": [-10.0, 5.0, 7.0], "outside": [80.0, 5.0, 7.0], "around": [-4.0, 11.0, 14.5]}[place]
    size = (20, 20, 20) if place == "around" else (6, 6, 6)
    padded = np.pad(volume.numpy(), [(0, 0)] + [(60, 60)] * 3, constant_values=volume.numpy().min())
    affine = AFFINE.copy()
    affine[:3, 3] -= 60 * AFFINE[:3, :3].sum(axis=1)
    whole = MetaTensor(torch.from_numpy(padded), affine=torch.from_numpy(affine))
    # on the middle between voxels, so that both grids have the same samples
    point = torch.tensor([centre]) + torch.tensor([1.0, 1.5, 1.25])
    crops, places = padded_crops_at(volume, point, size, spacing)
    torch.testing.assert_close(places, point)
    torch.testing.assert_close(crops, crops_at(whole, point, size, spacing)[0], atol=1e-4, rtol=0)


def test_storage_does_not_matter_along_world_axes() -> None:
    volume = ramp_volume(AFFINE, (12, 14, 10))
    turned = Orientation(axcodes="PIL", labels=None)(volume)
    points = torch.tensor([[-9.0, 40.0, 8.0], [3.0, 20.0, 20.0]])
    a, b = (padded_crops_at(v, points, (8, 8, 8), (2.0, 2.0, 2.0))[0] for v in (volume, turned))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_two_dimensions() -> None:
    volume = MetaTensor(torch.arange(30.0).view(1, 5, 6) + 1, affine=torch.eye(3))
    crops, places = padded_crops_at(volume, torch.tensor([[0.0, 0.0]]), (3, 3))
    assert crops[0, 0].tolist() == [[1, 1, 1], [1, 1, 2], [1, 7, 8]]
    assert places.tolist() == [[0, 0]]


def test_inside_volume_reaches_to_the_faces_of_the_outermost_voxels() -> None:
    volume = ramp_volume(AFFINE, (4, 4, 4))
    points = torch.tensor([[-10.9, 5, 7], [-11.1, 5, 7], [-3.1, 5, 7], [-2.9, 5, 7], [torch.nan, 5, 7]])
    assert inside_volume(volume, points).tolist() == [True, False, True, False, False]
