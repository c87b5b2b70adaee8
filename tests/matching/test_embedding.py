"""Matching by anatomical embeddings: where it must be right, orientation, stores, bad input."""

from __future__ import annotations

import itertools
import logging
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader, Dataset

from anatomy_ssl.data.embedding_store import EmbeddingStore
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.matching import EmbeddingMatcher, Matches, round_trip
from anatomy_ssl.matching.frame import read_frame
from tests.matching.networks import small_recipe, write_embedding

SPACING = (4.0, 5.0, 3.0)
POINTS = torch.tensor([[-40.0, 12.0, 30.0], [-21.0, 30.5, 41.0], [-5.0, 55.0, 66.0], [3.0, 21.0, 52.0]])


def texture(seed: int, shape: tuple[int, ...] = (16, 15, 22)) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return (noise * 1000).astype(np.float32)


def image(seed: int) -> nib.Nifti1Image:
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-45, 5, 20)
    return nib.Nifti1Image(texture(seed), affine)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two volumes that have nothing to do with each other."""
    for name, seed in (("a", 0), ("b", 1)):
        nib.save(image(seed), tmp_path / f"{name}.nii.gz")
    a, b = ({"image": str(tmp_path / f"{name}.nii.gz"), "subject": name} for name in "ab")
    return a, b


@pytest.fixture
def matcher(tmp_path: Path) -> EmbeddingMatcher:
    return EmbeddingMatcher(write_embedding(tmp_path / "embedding.pt"), tmp_path / "store")


def orientations() -> Iterator[np.ndarray]:
    """All 48 ways of storing a volume."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield np.stack([axes, signs], axis=1)


def test_a_volume_in_itself_is_the_identity(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    """Points of entries are found exactly, others within half an entry (4 mm) and where the score is high."""
    a, _ = pair
    stored = matcher.open(a)
    entries = torch.from_numpy(stored.to_world(np.array([[1, 2, 3], [4, 5, 6], [0, 0, 0]]))).float()
    found = matcher(a, a, entries)
    assert found.points.dtype == torch.float32 and found.scores.shape == (3,)
    assert torch.allclose(found.scores, torch.ones(3), atol=1e-3) and (found.scores <= 1).all()
    assert ((found.points - entries).abs() <= 4 + 1e-3).all()
    plain = EmbeddingMatcher(matcher.embedder.path, matcher.folder, refine="false")
    assert torch.allclose(plain(a, a, entries).points, entries, atol=1e-3)


def test_a_moved_volume_moves_the_matches(matcher: EmbeddingMatcher, pair: tuple[dict, dict], tmp_path: Path) -> None:
    """The same voxels under another origin: positions are those of the header, not of the array."""
    a, b = pair
    moved = image(0)
    shift = torch.tensor([100.0, -37.0, 11.0])
    moved.affine[:3, 3] += shift.numpy()
    nib.save(nib.Nifti1Image(moved.get_fdata(), moved.affine), tmp_path / "moved.nii.gz")
    far = {"image": str(tmp_path / "moved.nii.gz")}
    assert torch.allclose(matcher(b, far, POINTS).points, matcher(b, a, POINTS).points + shift, atol=0.05)
    assert torch.allclose(matcher(far, b, POINTS + shift).points, matcher(a, b, POINTS).points, atol=0.05)


@pytest.mark.parametrize("turned", ["source", "target"])
def test_all_48_orientations_give_the_same_mm(matcher: EmbeddingMatcher, tmp_path: Path, turned: str) -> None:
    """Within half a voxel of the smallest spacing."""
    nib.save(image(0), tmp_path / "a.nii")
    nib.save(image(1), tmp_path / "b.nii")
    a, b = {"image": str(tmp_path / "a.nii")}, {"image": str(tmp_path / "b.nii")}
    expected = matcher(a, b, POINTS)
    seen = set()
    for number, orientation in enumerate(orientations()):
        other = image(0 if turned == "source" else 1).as_reoriented(orientation)
        seen.add("".join(nib.aff2axcodes(other.affine)))
        path = tmp_path / f"turned_{number}.nii"
        nib.save(other, path)
        pair = ({"image": str(path)}, b) if turned == "source" else (a, {"image": str(path)})
        found = matcher(*pair, POINTS)
        assert float((found.points - expected.points).abs().max()) < min(SPACING) / 2, orientation
        assert torch.allclose(found.scores, expected.scores, atol=5e-3)
    assert len(seen) == 48


def test_nothing_is_found_outside_of_a_turned_volume(
    matcher: EmbeddingMatcher, pair: tuple[dict, dict], tmp_path: Path
) -> None:
    """Prepared, it is the box around it; what fills the corners is not searched."""
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING
    nib.save(nib.Nifti1Image(texture(1), affine), tmp_path / "oblique.nii.gz")
    oblique = {"image": str(tmp_path / "oblique.nii.gz")}
    frame = read_frame(oblique)
    stored = matcher.open(oblique)
    places = stored.to_world(np.argwhere(np.ones(stored.fine.shape[:3])))
    inside = frame.contains(torch.from_numpy(places)).numpy()
    norms = np.linalg.norm(stored.fine.astype(np.float32), axis=-1).ravel()
    assert 0.4 < inside.mean() < 0.9 and (norms[~inside] == 0).all() and np.allclose(norms[inside], 1, atol=2e-3)
    start = read_frame(pair[0]).affine[:3, 3]
    points = start + torch.rand(200, 3, dtype=torch.float64) * torch.tensor([60.0, 70.0, 63.0])
    found = matcher(pair[0], oblique, points)
    assert torch.equal(found.scores != 0, frame.contains(found.points)) and (found.scores > 0.5).float().mean() > 0.95


def test_points_outside_of_the_source_are_refused(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    a, b = pair
    with pytest.raises(ValueError, match=r"a.nii.gz.*300"):
        matcher(a, b, torch.cat([POINTS, torch.tensor([[300.0, 0, 0]])]))
    corner = torch.tensor([[-45.0 - 1.9, 5 - 2.4, 20 - 1.4], [-45 + 4 * 15.4, 5 + 5 * 14.4, 20 + 3 * 21.4]])
    assert torch.isfinite(matcher(a, b, corner).points).all()


def test_no_points(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    assert matcher(*pair, torch.zeros(0, 3)).points.shape == (0, 3)


def test_there_and_back(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    there, distance = round_trip(matcher, pair[0], pair[0], POINTS)
    assert isinstance(there, Matches) and (distance < 16).all()


def test_similarity_is_highest_at_the_match(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    matcher.refine = False
    found = matcher(*pair, POINTS)
    for point, place, score in zip(POINTS, found.points, found.scores):
        scores = matcher.similarity(*pair, point)
        top = torch.stack(torch.unravel_index(scores[0].argmax(), scores.shape[1:])).double()
        assert torch.allclose((scores.affine[:3, :3] @ top + scores.affine[:3, 3]).float(), place, atol=1e-3)
        assert float(scores.max()) == pytest.approx(float(score), abs=1e-5)


class Spy:
    """Counts the volumes that are embedded."""

    def __init__(self, matcher: EmbeddingMatcher) -> None:
        self.inner, self.seen = matcher.embedder, []
        self.model = self.inner.model

    def __call__(self, item: dict[str, Any]) -> Any:
        self.seen.append(Path(item["image"]).name)
        return self.inner(item)


def reopened(matcher: EmbeddingMatcher) -> tuple[EmbeddingMatcher, list[str]]:
    """As another process sees the store; and the names of what it embeds from now on."""
    other = EmbeddingMatcher(matcher.embedder.path, matcher.folder)
    spy = Spy(other)
    other.embedder = spy  # type: ignore[assignment]
    return other, spy.seen


def test_volumes_are_embedded_once(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    first = matcher(*pair, POINTS)
    again, seen = reopened(matcher)
    found = again(*pair, POINTS)
    assert not seen and torch.equal(found.points, first.points) and torch.equal(found.scores, first.scores)


@pytest.mark.parametrize("what", ["damaged", "volume", "network"])
def test_what_is_damaged_or_stale_is_made_anew(
    matcher: EmbeddingMatcher, pair: tuple[dict, dict], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With one line in the log, also in a process that had it open."""
    before = matcher(*pair, POINTS)
    if what == "damaged":
        path = EmbeddingStore(matcher.folder).folder_of(pair[1]) / "fine.npy"
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "volume":
        nib.save(image(7), pair[1]["image"])
    else:
        write_embedding(Path(matcher.embedder.path), seed=7)
    other, seen = reopened(matcher)
    with caplog.at_level(logging.WARNING, logger="anatomy_ssl.matching.embedding"):
        after = other(*pair, POINTS)
    expected = ["a.nii.gz", "b.nii.gz"] if what == "network" else ["b.nii.gz"]
    # what was logged before counts where an earlier test has set the level to INFO
    told = [r for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("anatomy_ssl")]
    assert seen == expected and len(told) == len(expected)
    assert torch.equal(after.points, before.points) == (what == "damaged")
    if what == "volume":
        assert torch.equal(matcher(*pair, POINTS).points, after.points)


def test_without_leave_to_compute_it_says_what_to_run(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    matcher.compute = False
    with pytest.raises(FileNotFoundError, match=r"a.nii.gz has no embedding in .*embed.yaml"):
        matcher(*pair, POINTS)


def test_weights_that_are_no_embedding_are_refused(tmp_path: Path, pair: tuple[dict, dict]) -> None:
    with pytest.raises(FileNotFoundError, match="no weights at"):
        EmbeddingMatcher(tmp_path / "absent.pt", tmp_path / "store")(*pair, POINTS)
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt does not say how to embed volumes"):
        EmbeddingMatcher(tmp_path / "other.pt", tmp_path / "store")(*pair, POINTS)


def test_a_bad_volume_is_named(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    broken = image(1).get_fdata()
    broken[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(broken, image(1).affine), pair[1]["image"])
    with pytest.raises(BadImageError, match=r"b.nii.gz: 1 of its voxels are NaN"):
        matcher(*pair, POINTS)


class Matched(Dataset):
    """A match for each index, in whichever process."""

    def __init__(self, matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
        self.matcher, self.pair = matcher, pair

    def __len__(self) -> int:
        return len(POINTS)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.matcher(*self.pair, POINTS[index : index + 1]).points[0]


def test_workers_compute_and_find_the_same(matcher: EmbeddingMatcher, pair: tuple[dict, dict], tmp_path: Path) -> None:
    """Both start with an empty store, and want the same volumes at once."""
    expected = matcher(*pair, POINTS).points
    fresh = EmbeddingMatcher(matcher.embedder.path, tmp_path / "other")
    loader = DataLoader(Matched(fresh, pair), 1, num_workers=2)
    assert torch.allclose(torch.cat(list(loader)), expected, atol=1e-3)
    assert len(list((tmp_path / "other").iterdir())) == 2


def test_an_open_matcher_is_small_when_pickled(matcher: EmbeddingMatcher, pair: tuple[dict, dict]) -> None:
    expected = matcher(*pair, POINTS).points
    parcel = pickle.dumps(matcher)
    assert len(parcel) < 2000
    shutil.rmtree(matcher.folder)
    assert torch.allclose(pickle.loads(parcel)(*pair, POINTS).points, expected, atol=1e-3)


def test_images_of_two_axes(tmp_path: Path) -> None:
    """Pixels of 4 mm; the part of an image that another shows as well is found in it."""
    recipe = small_recipe(spatial_dims=2)
    matcher = EmbeddingMatcher(write_embedding(tmp_path / "embedding.pt", recipe=recipe), tmp_path / "store")
    whole = texture(3, (40, 36))
    affine = np.diag([4.0, 4.0, 1.0, 1.0])
    nib.save(nib.Nifti1Image(whole, affine), tmp_path / "whole.nii.gz")
    nib.save(
        nib.Nifti1Image(np.ascontiguousarray(whole[::-1]), np.diag([-4.0, 4.0, 1.0, 1.0])), tmp_path / "turned.nii.gz"
    )
    a, b = ({"image": str(tmp_path / f"{name}.nii.gz")} for name in ("whole", "turned"))
    points = torch.tensor([[40.0, 60.0], [100.0, 30.0]])
    shift = torch.tensor([-4.0 * 39, 0.0])
    found = matcher(a, b, points)
    assert found.points.shape == (2, 2)
    assert ((found.points - (points + shift)).abs() < 8).all() and (found.scores > 0.9).all()
