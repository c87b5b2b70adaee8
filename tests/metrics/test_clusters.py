"""Neighbours across patients, and unions of clusters."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest

from anatomy_ssl.metrics.clusters import best_clusters, dice, landmark_scores


def test_neighbours_are_other_patients() -> None:
    """Patients far apart, landmarks alike within them: the nearest row of all would be of the same patient."""
    names, subjects = np.tile(["x", "y", "z"], 4), np.repeat(["a", "b", "c", "d"], 3)
    z = np.zeros((12, 4))
    z[np.arange(12), np.tile([0, 1, 2], 4)] = 10
    z[:, 3] = np.repeat(np.arange(4), 3)
    assert landmark_scores(z, names, subjects)["nearest_accuracy"] == 1
    z[:, :3] /= 1000
    assert landmark_scores(z, names, subjects)["nearest_accuracy"] == 1
    assert landmark_scores(z[:, 3:], names, subjects)["silhouette"] < 0


def test_neighbours_against_loops() -> None:
    rng = np.random.default_rng(0)
    names, subjects = rng.choice(list("xyz"), 30), rng.choice(list("abcd"), 30)
    names[0] = "only once"
    z = rng.normal(size=(30, 5))
    right = []
    for i in range(30):
        others = [j for j in range(30) if subjects[j] != subjects[i]]
        if any(names[j] == names[i] for j in others):
            right.append(names[min(others, key=lambda j, i=i: np.linalg.norm(z[i] - z[j]))] == names[i])
    assert len(right) == 29
    assert landmark_scores(z, names, subjects)["nearest_accuracy"] == pytest.approx(np.mean(right))


def test_one_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 patients"):
        landmark_scores(np.zeros((2, 3)), np.array(["x", "y"]), np.array(["a", "a"]))


@pytest.mark.parametrize("seed", range(5))
def test_best_clusters_against_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 200)
    mask = rng.random(200) < np.array([0.9, 0.1, 0.5, 0.4, 0.3])[labels]
    subsets = chain.from_iterable(combinations(range(5), n) for n in range(1, 6))
    best = max(dice(np.isin(labels, subset), mask) for subset in subsets)
    assert dice(np.isin(labels, best_clusters(labels, mask)), mask) == pytest.approx(best)
