"""Mined pairs show the same anatomy of two patients, whatever the workers, the storage and the matcher's failures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Lambdad, Orientationd
from torch.utils.data import DataLoader

from anatomy_ssl.data import EpochSampler, PairDataset, ScanDataset
from anatomy_ssl.data.pairs import partner_order
from anatomy_ssl.matching.matcher import Matches
from anatomy_ssl.transforms import ForegroundPointsd, LoadVolumed

SHAPE = (20, 18, 24)


class SameWorld:
    """A matcher for patients in one frame: the same coordinates, moved by `shift` mm, with scores by `score`.

    Args:
        shift: mm.
        score: of every match; or scores by the target's subject, or a list by the points' order.
    """

    def __init__(self, shift: float = 0.0, score: Any = 1.0) -> None:
        self.shift, self.score, self.calls = shift, score, 0

    def __call__(self, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor) -> Matches:
        self.calls += 1
        score = self.score[target["subject"]] if isinstance(self.score, dict) else self.score
        return Matches(points + self.shift, torch.as_tensor(score).float().expand(len(points)))


def write_ramp(path: Path, affine: np.ndarray, shape: tuple[int, ...], axis: int) -> None:
    """A volume whose values are its world coordinates along one axis, plus 1000."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    nib.save(nib.Nifti1Image((world[..., axis] + 1000).astype(np.float32), affine), path)


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, str]]:
    """Five patients, stored in different orientations, spacings and boxes of one world."""
    found = []
    spacings = [(2.0, 2.0, 3.0), (3.0, 2.0, 2.0), (2.5, 2.5, 2.5), (2.0, 3.0, 2.0), (3.0, 3.0, 3.0)]
    for number, spacing in enumerate(spacings):
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = [-20 + number, -18 - number, -30]
        if number % 2:  # stored from left to right backwards
            affine[0, 3] += affine[0, 0] * (SHAPE[0] - 1)
            affine[0, 0] *= -1
        write_ramp(tmp_path / f"scan_{number}.nii.gz", affine, SHAPE, axis=0)
        found.append({"image": str(tmp_path / f"scan_{number}.nii.gz"), "subject": f"patient {number}"})
    return found


def scans(items: list[dict[str, str]]) -> ScanDataset:
    """Prepared: oriented, with body points."""
    steps = [
        LoadVolumed("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        ForegroundPointsd("image", threshold=980.0, step=3.0),
        # inside of every volume, also after the jitter and the largest shift
        Lambdad("foreground", lambda points: points[(points.abs() < 6).all(dim=1)]),
    ]
    return ScanDataset(items, steps, progress=False)


def pairs(items: list[dict[str, str]], matcher: Any = None, **changes: Any) -> PairDataset:
    settings: dict[str, Any] = {"roi_size": (6, 6, 6), "candidates": 4}
    return PairDataset(scans(items), matcher or SameWorld(), **{**settings, **changes})


def equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(v, b[k]) if torch.is_tensor(v) else v == b[k] for k, v in a.items())


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_both_views_show_the_matched_place(items: list, spacing: tuple | None) -> None:
    """Each volume's values are its coordinates, so that a view's mean is where it says it lies."""
    data = pairs(items, SameWorld(shift=5.0), spacing=spacing)
    largest = 2e-3 if spacing else 3.0  # half a voxel off in each of the two views
    lowest = {data.scans.data[i]["subject"]: data.scans.prepared(i)["image"].min() for i in range(5)}
    checked = 0
    for epoch in range(4):
        for index in range(len(data)):
            item = data[(epoch, index)]
            assert torch.allclose(item["position_2"] - item["position_1"], torch.full((3,), 5.0), atol=largest)
            for number in (1, 2):
                view = item[f"view_{number}"]
                if view.min() > lowest[item[f"subject_{number}"]]:  # nothing padded, whose mean would be another
                    checked += 1
                    assert float(view.mean()) - 1000 == pytest.approx(float(item[f"position_{number}"][0]), abs=2e-2)
            assert item["subject_1"] != item["subject_2"]
            assert (item["score"], item["fell_back"]) == (1.0, False)
    assert checked > 20


def test_views_are_padded_not_moved(items: list) -> None:
    """A view larger than the volume: centred where it should be, the rest at the volume's minimum."""
    data = pairs(items, roi_size=(40, 40, 40))
    item = data[(0, 0)]
    volume = data.scans.prepared(0)["image"]
    assert torch.linalg.vector_norm(item["position_2"] - item["position_1"]) < 3.5
    assert item["view_1"].shape == (1, 40, 40, 40)
    assert (item["view_1"] == volume.min()).float().mean() > 0.5
    assert item["view_1"].max() <= volume.max()
    assert item["view_1"].sum() != 0


def test_pairs_are_a_function_of_seed_epoch_and_index(items: list) -> None:
    """Asked for in any order, by another data set object, they are the same; in another epoch or seed, others."""
    first, second = pairs(items), pairs(items)
    keys = [(epoch, index) for epoch in (0, 3, 1 << 32) for index in range(5)]
    reseeded = pairs(items, seed=1)
    there = {key: first[key] for key in keys}
    assert all(equal(second[key], there[key]) for key in reversed(keys))
    assert not any(equal(there[(0, i)], there[(epoch, i)]) for epoch in (3, 1 << 32) for i in range(5))
    assert not any(equal(reseeded[key], there[key]) for key in keys)
    assert equal(first[2], there[(0, 2)])


def test_workers_change_nothing(items: list) -> None:
    data = pairs(items)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(data, seed=4)
        sampler.set_epoch(1)
        batches.append(list(DataLoader(data, batch_size=2, sampler=sampler, num_workers=workers)))
    assert [len(batch["score"]) for batch in batches[0]] == [2, 2, 1]
    assert all(equal(a, b) for a, b in zip(*batches))


@pytest.mark.parametrize("counts", [[1] * 7, [2, 3, 1, 1], [2, 2], [1, 1]])
def test_everyone_is_a_partner_once_and_never_the_own_patient(counts: list[int]) -> None:
    subjects = [f"patient {i}" for i, count in enumerate(counts) for _ in range(count)]
    orders = {tuple(partner_order(subjects, np.random.default_rng(seed))) for seed in range(20)}
    assert len(orders) > 1 or len(subjects) == 2
    for order in orders:
        assert sorted(order) == list(range(len(subjects)))
        assert all(subjects[partner] != subjects[i] for i, partner in enumerate(order))


def test_partners_of_an_epoch_are_the_permutation(items: list) -> None:
    data = pairs(items)
    for epoch in range(3):
        assert sorted(data[(epoch, i)]["subject_2"] for i in range(5)) == [f"patient {i}" for i in range(5)]


def test_no_patient_is_paired_with_itself(items: list) -> None:
    """Three of five scans are of one patient: partners of theirs are drawn from the others."""
    several = [{**item, "subject": "one" if i < 3 else f"other {i}"} for i, item in enumerate(items)]
    for partner in ("previous", "random", "nearest"):
        data = pairs(several, partner=partner)
        for key in [(epoch, i) for epoch in range(6) for i in range(5)]:
            item = data[key]
            assert item["subject_1"] != item["subject_2"]


def test_the_nearest_partner_has_the_best_mean_score(items: list) -> None:
    scores = {f"patient {i}": 0.8 + 0.01 * i for i in range(5)}
    data = pairs(items, SameWorld(score=scores), partner="nearest", partners=5)
    assert [data[(2, i)]["subject_2"] for i in range(5)] == ["patient 4"] * 4 + ["patient 3"]


def test_the_first_good_candidate_is_taken(items: list) -> None:
    """Not the best one: it would always be the same kind of place."""
    scored = pairs(items, SameWorld(score=[0.1, 0.8, 0.9, 0.2]))
    plain = pairs(items, SameWorld(score=[0.0, 0.9, 0.0, 0.0]))
    assert torch.equal(scored[(0, 1)]["position_1"], plain[(0, 1)]["position_1"])
    assert float(scored[(0, 1)]["score"]) == pytest.approx(0.8)


def test_further_partners_are_asked_before_falling_back(items: list) -> None:
    """Only one patient has matches: with five partners all others find them, with one some fall back."""
    scores = {f"patient {i}": 0.9 if i == 2 else 0.3 for i in range(5)}
    asked = pairs(items, SameWorld(score=scores), partners=5)
    found = [asked[(0, i)] for i in range(5)]
    assert [item["fell_back"] for item in found] == [False, False, True, False, False]
    alone = pairs(items, SameWorld(score=scores), partners=1)
    assert sum(alone[(0, i)]["fell_back"] for i in range(5)) == 4


@pytest.mark.parametrize(
    ("fallback", "score", "same"),
    [("best", 0.4, False), ("best", 0.0, True), ("same_volume", 0.4, True), ("same_volume", 0.0, True)],
)
def test_fall_backs(items: list, fallback: str, score: float, same: bool, caplog: pytest.LogCaptureFixture) -> None:
    """What the config names is done, logged once with volumes and score, and marked in every item."""
    data = pairs(items, SameWorld(score=[score, score / 2, 0.0, 0.0]), fallback=fallback)
    with caplog.at_level(logging.WARNING):
        found = [data[(0, i)] for i in range(5)]
    assert all(item["fell_back"] for item in found)
    assert all((item["subject_1"] == item["subject_2"]) == same for item in found)
    if same:
        assert all(torch.equal(item["view_1"], item["view_2"]) for item in found)
    (line,) = caplog.messages
    assert "scan_0.nii.gz has no match above min_score 0.7" in line
    assert ("nothing in common" in line) == (score == 0)


def test_the_fall_back_raise_names_volumes_and_remedy(items: list) -> None:
    data = pairs(items, SameWorld(score=0.5), fallback="raise")
    with pytest.raises(ValueError, match=r"scan_1.*no match above.*score 0\.5.*lower min_score"):
        data[(0, 1)]


def test_a_match_outside_of_the_partner_counts_for_nothing(items: list) -> None:
    """Whatever the matcher says: a field of view that is elsewhere, and NaN."""
    for shift in (1000.0, math.nan):
        item = pairs(items, SameWorld(shift=shift, score=0.99))[(0, 0)]
        assert item["fell_back"]
        assert item["subject_1"] == item["subject_2"]


def test_a_single_patient_is_refused(items: list, caplog: pytest.LogCaptureFixture) -> None:
    alone = [{**item, "subject": "one"} for item in items[:2]]
    with pytest.raises(ValueError, match=r"no other patient to pair .*scan_0\.nii\.gz \(patient one\)"):
        pairs(alone)
    assert "no other patient" in caplog.text
    assert pairs(alone, fallback="same_volume")[(0, 1)]["subject_2"] == "one"
    held_out = PairDataset(scans(items[:1]), SameWorld(), (6, 6, 6), partner_scans=scans(items[1:]))
    assert {held_out[(epoch, 0)]["subject_2"] for epoch in range(20)} == {f"patient {i}" for i in range(1, 5)}


@pytest.mark.parametrize(
    "changes", [{"partner": "next"}, {"fallback": "none"}, {"candidates": 0}, {"partners": 0}, {"min_score": -0.1}]
)
def test_settings_that_mean_nothing_are_refused(items: list, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        pairs(items, **changes)


def test_all_candidates_of_a_partner_are_matched_in_one_call(items: list) -> None:
    matcher = SameWorld()
    pairs(items, matcher, candidates=50)[(0, 0)]
    assert matcher.calls == 1
