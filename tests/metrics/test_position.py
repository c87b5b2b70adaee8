from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import rankdata, special_ortho_group

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.metrics.position import (
    cross_fitted_position_scores,
    fit_position,
    position_scores,
    position_table,
    rho_across,
    rho_per_subject,
    rho_within,
    subject_pairs,
)
from tests.metrics.cohort import cohort


def replaced(emb: Embeddings, **fields: np.ndarray) -> Embeddings:
    names = ("embedding", "position", "subject", "image", "origin")
    return Embeddings(**{name: fields.get(name, getattr(emb, name)) for name in names})


def rho_reference(pairs: list[tuple[int, int]], z: np.ndarray, x: np.ndarray) -> float:
    """Spearman's rho by its definition: the correlation of ranks."""
    latent = [np.sqrt(((z[i] - z[j]) ** 2).sum()) for i, j in pairs]
    physical = [np.sqrt(((x[i] - x[j]) ** 2).sum()) for i, j in pairs]
    return float(np.corrcoef(rankdata(latent), rankdata(physical))[0, 1])


@pytest.mark.parametrize("across", [False, True])
def test_every_pair_comes_once(across: bool) -> None:
    subject = np.array(["b", "a", "c", "b", "b", "a"])
    i, j = subject_pairs(subject, across)
    every = itertools.combinations(range(6), 2)
    expected = {frozenset(pair) for pair in every if (subject[pair[0]] != subject[pair[1]]) == across}
    assert {frozenset(pair) for pair in zip(i.tolist(), j.tolist())} == expected
    assert len(i) == len(expected)


@pytest.mark.parametrize("across", [False, True])
def test_drawn_pairs_are_uniform_and_not_repeated(across: bool) -> None:
    subject = np.repeat(["a", "b", "c"], [2, 20, 8])
    every = list(zip(*subject_pairs(subject, across)))
    counts = dict.fromkeys(every, 0)
    for seed in range(200):
        i, j = subject_pairs(subject, across, max_pairs=50, seed=seed)
        assert len(set(zip(i, j))) == 50
        assert ((subject[i] != subject[j]) == across).all()
        for pair in zip(i, j):
            counts[pair] += 1
    share = 50 / len(every)
    assert np.abs(np.array(list(counts.values())) / 200 - share).max() < 5 * np.sqrt(share / 200)
    first, again = (subject_pairs(subject, across, max_pairs=50, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_rho_is_that_of_plain_loops(dimensions: int) -> None:
    emb = cohort(4, 7, noise=0.8, dimensions=dimensions)
    z, groups = emb.embedding.astype(float), {name: np.flatnonzero(emb.subject == name) for name in set(emb.subject)}
    within = [rho_reference(list(itertools.combinations(rows, 2)), z, emb.position) for rows in groups.values()]
    assert rho_within(emb) == pytest.approx(np.mean(within), abs=1e-9)
    assert 0.05 < rho_within(emb) < 0.98
    across = [pair for pair in itertools.combinations(range(28), 2) if emb.subject[pair[0]] != emb.subject[pair[1]]]
    assert rho_across(emb) == pytest.approx(rho_reference(across, z, emb.position - emb.origin), abs=1e-9)


def test_rho_does_not_see_frames() -> None:
    """Neither a rotation and scale of the embedding, nor where and how the patients lie in the scanner."""
    emb, rng = cohort(noise=0.5), np.random.default_rng(1)
    embedding = 7 * emb.embedding @ special_ortho_group.rvs(8, random_state=rng) + 3
    rotation, shift = special_ortho_group.rvs(3, random_state=rng), rng.normal(size=3) * 300
    position, origin = emb.position @ rotation + shift, emb.origin @ rotation + shift
    moved = replaced(emb, embedding=embedding, position=position, origin=origin)
    assert rho_within(moved) == pytest.approx(rho_within(emb), abs=1e-4)
    assert rho_across(moved) == pytest.approx(rho_across(emb), abs=1e-4)


def test_a_planted_encoding_is_found_and_its_absence_too() -> None:
    emb = cohort(noise=0.01)
    assert rho_within(emb) > 0.99
    assert rho_across(emb) > 0.99
    shuffled = replaced(emb, embedding=np.random.default_rng(0).permutation(emb.embedding))
    assert abs(rho_within(shuffled)) < 0.15
    assert abs(rho_across(shuffled)) < 0.15


def test_subsampling_changes_rho_little() -> None:
    emb = cohort(noise=0.6, crops=40)
    assert rho_across(emb, max_pairs=3000) == pytest.approx(rho_across(emb), abs=0.05)
    assert rho_within(emb, max_pairs=300) == pytest.approx(rho_within(emb), abs=0.05)
    assert rho_across(emb, max_pairs=3000, seed=1) == rho_across(emb, max_pairs=3000, seed=1)


def test_across_subjects_needs_the_origin() -> None:
    emb = cohort()
    assert rho_across(replaced(emb, origin=np.zeros(3))) < 0.9 < rho_across(emb)


def test_where_rho_is_undefined() -> None:
    emb = cohort(2, 4)
    collapsed = replaced(emb, embedding=np.ones((8, 5)))
    assert np.isnan(rho_within(collapsed))
    assert np.isnan(rho_across(collapsed))
    assert np.isnan(rho_across(emb.select(emb.subject == "p0")))
    few = emb.select(np.array([0, 1, 2, 3, 4, 5]))
    assert list(rho_per_subject(few)) == ["p0"]
    assert rho_within(few) == rho_within(emb.select(emb.subject == "p0"))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_regression_recovers_planted_positions(dimensions: int) -> None:
    emb = cohort(noise=0.01, dimensions=dimensions)
    test = emb.subject >= "p4"
    scores = position_scores(fit_position(emb.select(~test)), emb.select(test))
    assert scores["r2"] > 0.999
    assert scores["median_error_mm"] < 3
    axes = [scores[f"r2_{axis}"] for axis in "xyz"[:dimensions]]
    assert scores["r2"] == pytest.approx(np.mean(axes))
    assert len(scores) == 2 + dimensions


def test_regression_finds_nothing_in_shuffled_embeddings() -> None:
    emb = cohort(12, 20)
    emb = replaced(emb, embedding=np.random.default_rng(0).permutation(emb.embedding))
    test = emb.subject >= "p6"
    scores = position_scores(fit_position(emb.select(~test)), emb.select(test))
    assert -0.2 < scores["r2"] < 0.1
    assert scores["median_error_mm"] > 100


def test_the_penalty_is_chosen_over_patients() -> None:
    """A code per patient predicts other crops of that patient, which must not win the choice."""
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(20), 10)
    code, centre = rng.normal(size=(20, 40)), rng.normal(size=(20, 3)) * 100
    emb = Embeddings(code[subject] + 0.01 * rng.normal(size=(200, 40)), centre[subject], subject)
    alone = fit_position(replaced(emb, subject=np.full(200, "one")))
    assert fit_position(emb)[-1].alpha >= 100 * alone[-1].alpha


def test_scores_are_right_on_a_known_error() -> None:
    class Shifted:
        def predict(self, z: np.ndarray) -> np.ndarray:
            return z[:, :3] + np.array([3.0, 0, 4])

    position = np.random.default_rng(0).normal(size=(50, 3)) * np.array([3, 5, 8])
    emb = Embeddings(position, position, np.full(50, "a"))
    scores = position_scores(Shifted(), emb)  # type: ignore[arg-type]
    assert scores["median_error_mm"] == pytest.approx(5, rel=1e-5)
    variance = position.var(axis=0)
    expected = [1 - 9 / variance[0], 1.0, 1 - 16 / variance[2]]
    assert [scores[f"r2_{axis}"] for axis in "xyz"] == pytest.approx(expected, rel=1e-4)
    assert scores["r2"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_cross_fitting_predicts_patients_that_it_did_not_see() -> None:
    assert cross_fitted_position_scores(cohort(noise=0.01))["r2"] > 0.999
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(10), 20)
    centre = rng.normal(size=(10, 3)) * 100
    names = Embeddings(np.eye(10)[subject], centre[subject] + rng.normal(size=(200, 3)), subject.astype(str))
    assert cross_fitted_position_scores(names)["r2"] < 0.1
    one = cross_fitted_position_scores(cohort(1))
    assert set(one) == {"r2", "median_error_mm", "r2_x", "r2_y", "r2_z"}
    assert np.isnan(list(one.values())).all()


def test_table_keeps_patients_apart() -> None:
    emb = cohort(noise=0.05)
    test = emb.subject >= "p3"
    table = position_table(emb.select(~test), emb.select(test))
    assert list(table) == ["rho_within", "rho_across", "r2", "median_error_mm", "rankme"]
    assert table["rho_within"] == rho_within(emb.select(test))
    assert table["r2"] > 0.99
    with pytest.raises(ValueError, match="p3"):
        position_table(emb.select(emb.subject <= "p3"), emb.select(test))
    with pytest.raises(ValueError, match="at least 2"):
        fit_position(emb.select(np.array([0])))
