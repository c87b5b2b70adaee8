"""Matching by coordinates, and what all matchers share: fields of view, points outside, the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.matching.frame import read_frame
from anatomy_ssl.matching.matcher import Matches, round_trip
from anatomy_ssl.matching.world import WorldMatcher
from tests.matching.bodies import AFFINE, ORIENTATIONS, stored_as, write_body

POINTS = torch.tensor([[0.0, 0, 0], [30, -20, 50], [-40, 10, -60]])


@pytest.fixture
def shifted(tmp_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A body, and the same 40 mm further to the front in a volume that went with it."""
    shift = np.array([0.0, 40.0, 0.0])
    affine = AFFINE.copy()
    affine[:3, 3] += shift
    target = write_body(tmp_path / "b.nii.gz", lambda x: x - shift, affine=affine)
    return write_body(tmp_path / "a.nii.gz"), target


def test_a_place_stays_or_follows_the_body(shifted) -> None:
    same = WorldMatcher()(*shifted, POINTS)
    assert torch.equal(same.points, POINTS) and same.scores.tolist() == [1, 1, 1]
    moved = WorldMatcher("centre")(*shifted, POINTS)
    assert (moved.points - POINTS - torch.tensor([0.0, 40, 0])).abs().max() < 1e-3


@pytest.mark.parametrize("align", [None, "centre"])
def test_all_48_storage_orientations(shifted, tmp_path: Path, align) -> None:
    expected = WorldMatcher(align)(*shifted, POINTS)
    for k, orientation in enumerate(ORIENTATIONS):
        source = stored_as(shifted[0], orientation, tmp_path / f"a{k}.nii")
        target = stored_as(shifted[1], ORIENTATIONS[-k], tmp_path / f"b{k}.nii")
        found = WorldMatcher(align)(source, target, POINTS)
        assert (found.points - expected.points).abs().max() < 1e-3
        assert torch.equal(found.scores, expected.scores)


def test_the_edge_of_the_field_of_view_is_half_a_voxel_out(tmp_path: Path) -> None:
    item = write_body(tmp_path / "a.nii.gz")
    frame = read_frame(item)
    inner = torch.tensor([[-102.4, 0, 0], [97.4, 0, 0]])
    outer = torch.tensor([[-102.6, 0, 0], [97.6, 0, 0]])
    assert frame.contains(inner).all() and not frame.contains(outer).any()
    assert frame.shape == (40, 32, 44) and frame.spacing() == (5.0, 5.0, 5.0)


def test_radiographs_in_dicom_have_two_axes(tmp_path: Path) -> None:
    """Their files say three, the last of one voxel, as for NIfTI files of one slice."""
    items = []
    for name, shift in (("a", 0), ("b", 6)):
        values = np.zeros((1, 40, 48), np.uint16)
        values[:, 10:30, 10 + shift : 30 + shift] = 1000
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((4.0, 4.0, 1.0))
        sitk.WriteImage(image, str(tmp_path / f"{name}.dcm"))
        items.append({"image": str(tmp_path / f"{name}.dcm")})
    affine = read_frame(items[0]).affine
    points = torch.tensor([[20.0, 20.0], [0.0, 0.0]]) @ affine[:2, :2].float() + affine[:2, 3].float()
    matches = WorldMatcher()(*items, points)
    assert torch.equal(matches.points, points) and matches.scores.tolist() == [1, 1]
    moved = WorldMatcher("centre")(*items, points[:1]).points - points[:1]
    assert torch.allclose(moved.abs(), torch.tensor([[24.0, 0.0]]), atol=1e-3)
    with pytest.raises(ValueError, match="lie outside"):
        WorldMatcher()(*items, points + 400)


def test_outside_of_the_target_the_score_is_zero_and_there_is_no_way_back(tmp_path: Path) -> None:
    small = write_body(tmp_path / "b.nii.gz", shape=(40, 32, 20))
    whole = write_body(tmp_path / "a.nii.gz")
    points = torch.tensor([[0.0, 0, -50], [0, 0, 50]])
    matches, back = round_trip(WorldMatcher(), whole, small, points)
    assert matches.scores.tolist() == [1, 0] and back.tolist() == [0, torch.inf]


def test_the_way_back_is_measured_in_mm(tmp_path: Path) -> None:
    items = write_body(tmp_path / "a.nii.gz"), write_body(tmp_path / "b.nii.gz")

    def matcher(source, target, points):
        return Matches(points + torch.tensor([3.0, 0, 0]), torch.ones(len(points)))

    assert torch.allclose(round_trip(matcher, *items, POINTS)[1], torch.tensor(6.0))


def test_bad_input(shifted, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of 3 points lie outside of .*a\.nii\.gz"):
        WorldMatcher()(*shifted, POINTS + torch.tensor([75.0, 0, 0]))
    with pytest.raises(ValueError, match="3 axes"):
        WorldMatcher()(*shifted, POINTS[:, :2])
    with pytest.raises(ValueError, match="not finite"):
        WorldMatcher()(*shifted, POINTS * torch.nan)
    with pytest.raises(BadImageError, match="does not exist"):
        WorldMatcher()(shifted[0], {"image": str(tmp_path / "none.nii.gz")}, POINTS)
    with pytest.raises(ValueError, match="align"):
        WorldMatcher("head")
