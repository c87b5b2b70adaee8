"""Registration finds where a known warp took each point, from whatever part of the body is shown."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.matching import registration
from anatomy_ssl.matching.alignment import AlignmentError
from anatomy_ssl.matching.matcher import round_trip
from anatomy_ssl.matching.registration import RegistrationMatcher
from tests.matching.bodies import AFFINE, ORIENTATIONS, SHAPE, stored_as, write_body

POINTS = torch.tensor([[35.0, 0, 40], [-35, 5, 35], [0, -38, 0], [28, -5, -30], [-30, 10, -20], [0, 0, 60.0]])
ANGLE = np.radians(8)
MATRIX = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]) @ np.diag(
    [1.1, 0.95, 1.05]
)
SHIFT = np.array([60.0, -35.0, 40.0])


def warped(points: np.ndarray) -> np.ndarray:
    return points @ MATRIX.T + SHIFT


def unwarped(places: np.ndarray) -> np.ndarray:
    return (places - SHIFT) @ np.linalg.inv(MATRIX).T


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A body, and the same one turned, stretched and moved; its volume follows it."""
    moved = AFFINE.copy()
    moved[:3, 3] += SHIFT - 10
    target = write_body(tmp_path / "b.nii.gz", unwarped, (46, 38, 50), moved)
    return write_body(tmp_path / "a.nii.gz"), target


def test_a_known_affine_warp(pair) -> None:
    """Points go the way that the body went, not the opposite one."""
    matches, back = round_trip(RegistrationMatcher(), *pair, POINTS)
    error = np.linalg.norm(matches.points.numpy() - warped(POINTS.numpy()), axis=1)
    assert error.max() < 2.5
    assert (matches.scores == 1).all()
    assert back.max() < 4.0


def bent(points: np.ndarray) -> np.ndarray:
    """The head moves to the side, as no affine transform could have it."""
    return points + np.stack([np.zeros(len(points)), 14 * np.sin(points[:, 2] / 25), 0 * points[:, 2]], axis=1)


def unbent(places: np.ndarray) -> np.ndarray:
    z = places[..., 2]
    return places - np.stack([0 * z, 14 * np.sin(z / 25), 0 * z], axis=-1)


def test_a_b_spline_follows_what_an_affine_transform_cannot(tmp_path: Path) -> None:
    source, target = write_body(tmp_path / "a.nii.gz"), write_body(tmp_path / "b.nii.gz", unbent)
    errors = {}
    for kind in ("affine", "bspline"):
        found = RegistrationMatcher(transform=kind, control_spacing=35.0)(source, target, POINTS).points.numpy()
        errors[kind] = np.linalg.norm(found - bent(POINTS.numpy()), axis=1).mean()
    assert errors["bspline"] < 0.5 * errors["affine"]
    assert errors["bspline"] < 2.5


@pytest.mark.parametrize("part", ["head", "feet"])
@pytest.mark.parametrize("whole_is_source", [True, False])
def test_a_part_is_found_in_the_whole(tmp_path: Path, part: str, whole_is_source: bool) -> None:
    """The slab shows half of the body; laid middle on middle, it would be a quarter of a body off."""
    cut = AFFINE.copy()
    cut[2, 3] += 105.0 if part == "head" else 0.0
    whole, slab = write_body(tmp_path / "a.nii.gz"), write_body(tmp_path / "b.nii.gz", None, (40, 32, 23), cut)
    shown = POINTS[POINTS[:, 2] > 10] if part == "head" else POINTS[POINTS[:, 2] < -10]
    pair = (whole, slab) if whole_is_source else (slab, whole)
    matches = RegistrationMatcher()(*pair, shown)
    assert torch.linalg.vector_norm(matches.points - shown, dim=1).max() < 5.0
    if whole_is_source:
        hidden = POINTS[POINTS[:, 2] < -30] if part == "head" else POINTS[POINTS[:, 2] > 30]
        assert (RegistrationMatcher()(*pair, hidden).scores == 0).all()


def test_the_storage_orientation_changes_nothing(pair, tmp_path: Path) -> None:
    matcher = RegistrationMatcher(iterations=30)
    expected = matcher(*pair, POINTS).points
    for number in (5, 18, 31, 47):
        source = stored_as(pair[0], ORIENTATIONS[number], tmp_path / f"a{number}.nii.gz")
        target = stored_as(pair[1], ORIENTATIONS[number - 3], tmp_path / f"b{number}.nii.gz")
        assert (matcher(source, target, POINTS).points - expected).abs().max() < 0.1


def test_transforms_are_kept_by_content(pair, tmp_path: Path, monkeypatch, caplog) -> None:
    """Read again in another process; anew for other settings, another image, or a damaged file."""
    store, calls, real = tmp_path / "store", [], registration.align

    def counted(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(registration, "align", counted)
    options = {"transform": "bspline", "iterations": 3, "samples": 1000, "control_spacing": 150.0}
    first = RegistrationMatcher(store, **options)(*pair, POINTS).points
    again = RegistrationMatcher(store, **options)(*pair, POINTS).points
    assert len(calls) == 1 and torch.equal(first, again)
    RegistrationMatcher(store, **options, seed=1)(*pair, POINTS)
    assert len(calls) == 2 and len(list(store.iterdir())) == 2

    file = next(f for f in store.iterdir() if '"BSplineTransform"' in f.read_text())
    head, numbers = file.read_text().split('"transforms"')
    for damaged in (file.read_text()[:-40], f'{head}"transforms"{numbers.replace("1", "2", 1)}', "[]"):
        for f in store.iterdir():
            f.write_text(damaged)
        calls.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(RegistrationMatcher(store, **options)(*pair, POINTS).points, first)
        assert len(calls) == 1 and "damaged" in caplog.text
        caplog.clear()

    write_body(Path(pair[1]["image"]), None, (46, 38, 50), AFFINE)
    calls.clear()
    assert not torch.equal(RegistrationMatcher(store, **options)(*pair, POINTS).points, first)
    assert len(calls) == 1


def test_a_changed_image_is_seen_by_the_same_matcher(pair) -> None:
    matcher = RegistrationMatcher(iterations=5)
    first = matcher(*pair, POINTS).points
    write_body(Path(pair[1]["image"]))
    assert not torch.equal(matcher(*pair, POINTS).points, first)


def test_what_cannot_be_registered_scores_nothing(pair, monkeypatch, caplog) -> None:
    def fails(*args):
        raise AlignmentError("a and b cannot be registered")

    monkeypatch.setattr(registration, "align", fails)
    with caplog.at_level(logging.WARNING):
        matches = RegistrationMatcher()(*pair, POINTS)
    assert (matches.scores == 0).all() and matches.points.shape == POINTS.shape
    assert "cannot be registered" in caplog.text


def test_bad_input(pair, tmp_path: Path) -> None:
    empty = tmp_path / "empty.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE), empty)
    with pytest.raises(BadImageError, match=r"empty\.nii\.gz.*no body"):
        RegistrationMatcher()(pair[0], {"image": str(empty)}, POINTS)
    with pytest.raises(ValueError, match=r"1 of 2 points lie outside of .*a\.nii\.gz"):
        RegistrationMatcher()(*pair, torch.tensor([[0.0, 0, 0], [500, 0, 0]]))
    with pytest.raises(ValueError, match="affine or bspline"):
        RegistrationMatcher(transform="rigid")
    with pytest.raises(ValueError, match="positive"):
        RegistrationMatcher(spacing=0)


def test_workers_get_a_copy(pair) -> None:
    matcher = RegistrationMatcher(iterations=5)
    expected = matcher(*pair, POINTS).points
    assert torch.equal(pickle.loads(pickle.dumps(matcher))(*pair, POINTS).points, expected)
