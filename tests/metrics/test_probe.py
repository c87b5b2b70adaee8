from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.metrics.probe import linear_probe, patient_folds, probe_rows, read_probe
from anatomy_ssl.metrics.tables import write_table


def crops(patients: int = 24, each: int = 10, features: int = 6, seed: int = 0) -> tuple[Embeddings, np.ndarray]:
    """Embeddings of noise, and a lesion volume that they know nothing of."""
    rng = np.random.default_rng(seed)
    n = patients * each
    volume = np.where(rng.random(n) < 0.4, rng.lognormal(4, 1, n), 0)
    emb = Embeddings(rng.normal(size=(n, features)), rng.normal(size=(n, 3)), np.repeat(np.arange(patients), each))
    return emb, volume


def informed(emb: Embeddings, signal: np.ndarray) -> Embeddings:
    z = emb.embedding.copy()
    z[:, 2] = 50 + 0.01 * (signal + 0.3 * z[:, 2])  # needs the standardisation: far off and small
    return Embeddings(z, emb.position, emb.subject)


@pytest.mark.parametrize("folds", [2, 5, 24])
def test_every_patient_is_tested_once_and_never_trained_on_meanwhile(folds: int) -> None:
    emb, volume = crops()
    split = patient_folds(emb.subject, volume > 0, folds)
    assert len(split) == folds
    for train, test in split:
        assert not set(emb.subject[train]) & set(emb.subject[test])
        assert sorted([*train, *test]) == list(range(len(emb)))
    assert sorted(np.concatenate([test for _, test in split])) == list(range(len(emb)))


def test_folds_depend_on_the_seed_only() -> None:
    emb, volume = crops()
    first, again, other = (patient_folds(emb.subject, volume > 0, 5, seed) for seed in (0, 0, 1))
    assert all((a[1] == b[1]).all() for a, b in zip(first, again))
    assert any(set(a[1]) != set(b[1]) for a, b in zip(first, other))


def test_folds_share_a_rare_class() -> None:
    subject = np.repeat(np.arange(20), 4)
    y = np.isin(subject, (3, 8, 11, 12, 19))
    assert all(y[test].any() for _, test in patient_folds(subject, y, 5))


def test_too_few_patients() -> None:
    with pytest.raises(ValueError, match=r"10 folds .* got 3 patients"):
        patient_folds(np.repeat(["a", "b", "c"], 50), np.tile([0, 1], 75), 10)
    with pytest.raises(ValueError, match="2 or more"):
        patient_folds(np.array(["a", "b"]), np.array([0, 1]), 1)


def test_chance_is_a_half() -> None:
    """Also where a patient's crops look alike and mostly share their class, which leaks if folds split patients."""
    means = []
    for seed in range(3):
        emb, _ = crops(seed=seed)
        rng = np.random.default_rng(seed)
        look = rng.normal(size=(24, 6))[emb.subject.astype(int)]
        sick = rng.random(24)[emb.subject.astype(int)] > rng.random(len(emb))
        alike = Embeddings(look + 0.1 * emb.embedding, emb.position, emb.subject)
        means.append(np.nanmean(linear_probe(alike, sick, folds=8, epochs=10, seed=seed)["auc"]))
    assert np.mean(means) == pytest.approx(0.5, abs=0.08)


def test_a_signal_is_found_on_any_scale() -> None:
    emb, volume = crops()
    auc = linear_probe(informed(emb, volume > 0), volume > 0, folds=6)["auc"]
    assert len(auc) == 6
    assert np.mean(auc) > 0.95


def test_agrees_with_logistic_regression() -> None:
    """The convex problem's solution, given time to reach it."""
    emb, volume = crops(features=3)
    emb = informed(emb, 0.7 * (volume > 0) + np.random.default_rng(1).normal(size=len(emb)))
    expected = []
    for train, test in patient_folds(emb.subject, volume > 0, 4):
        mean, sd = emb.embedding[train].mean(0), emb.embedding[train].std(0)
        model = LogisticRegression(C=1e6).fit((emb.embedding[train] - mean) / sd, volume[train] > 0)
        expected.append(roc_auc_score(volume[test] > 0, model.decision_function((emb.embedding[test] - mean) / sd)))
    assert linear_probe(emb, volume > 0, folds=4, epochs=60)["auc"] == pytest.approx(expected, abs=0.02)


def test_same_seed_same_scores_and_no_touch_on_global_randomness() -> None:
    emb, volume = crops()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = linear_probe(emb, volume > 0, folds=3, epochs=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert linear_probe(emb, volume > 0, folds=3, epochs=3) == first
    assert linear_probe(emb, volume > 0, folds=3, epochs=3, seed=1) != first


def test_a_fold_does_not_depend_on_the_test_crops() -> None:
    """Nothing of the test part enters the scaling or the head: corrupting it leaves other test crops' ranks alone."""
    emb, volume = crops()
    y = volume > 0
    _, test = patient_folds(emb.subject, y, 3)[0]
    z = emb.embedding.copy()
    z[test] = 3 * z[test] + 5  # would shift a scaler that saw it; ranks within the test part stay
    changed = Embeddings(z, emb.position, emb.subject)
    assert linear_probe(changed, y, folds=3, epochs=2)["auc"][0] == linear_probe(emb, y, folds=3, epochs=2)["auc"][0]


def test_a_fold_with_one_class_is_nan_and_named() -> None:
    subject = np.repeat([f"p{k}" for k in range(6)], 5)
    y = np.isin(subject, ("p1", "p4")) & (np.tile(np.arange(5), 6) < 3)
    rng = np.random.default_rng(0)
    emb = Embeddings(rng.normal(size=(30, 3)), np.zeros((30, 3)), subject)
    with pytest.warns(UserWarning, match=r"Fold \d \(patients p\d.*\) has one classification target only"):
        auc = linear_probe(emb, y, folds=3, epochs=2)["auc"]
    assert np.isnan(auc).sum() == 1


def test_regression_of_volume() -> None:
    emb, volume = crops()
    blind = linear_probe(emb, volume, folds=4, task="regression")
    seeing = linear_probe(informed(emb, np.log1p(volume)), volume, folds=4, task="regression", epochs=100)
    assert list(seeing) == ["spearman", "r2", "mae"]
    assert min(seeing["r2"]) > 0.9
    assert min(seeing["spearman"]) > 0.7  # zero volumes are tied
    assert max(seeing["mae"]) < 0.5
    assert max(blind["r2"]) < 0.1
    assert abs(np.mean(blind["spearman"])) < 0.2


def test_targets_that_make_no_sense() -> None:
    emb, volume = crops(4)
    with pytest.raises(ValueError, match="0 or 1"):
        linear_probe(emb, volume, folds=2)
    with pytest.raises(ValueError, match="not negative"):
        linear_probe(emb, -volume, folds=2, task="regression")
    with pytest.raises(ValueError, match="one value per crop"):
        linear_probe(emb, volume[1:], folds=2)
    with pytest.raises(ValueError, match="task"):
        linear_probe(emb, volume, folds=2, task="ranking")  # type: ignore[arg-type]


def test_results_are_read_back(tmp_path: Path) -> None:
    a = write_table(tmp_path / "a.csv", probe_rows("a", {"auc": [0.5, float("nan")], "other": [1.0, 2.0]}))
    b = write_table(tmp_path / "b.csv", probe_rows("b", {"auc": [0.25, 1 / 3]}))
    read = read_probe([a, b])
    assert list(read) == ["a", "b"]
    assert read["b"] == [0.25, 1 / 3]
    assert read["a"][0] == 0.5
    assert np.isnan(read["a"][1])
    assert read_probe([a], "other") == {"a": [1.0, 2.0]}
    with pytest.raises(ValueError, match="repeats fold 0"):
        read_probe([a, a])
    with pytest.raises(ValueError, match="no r2"):
        read_probe([a], "r2")
    with pytest.raises(ValueError, match="different folds"):
        read_probe([a, write_table(tmp_path / "c.csv", probe_rows("c", {"auc": [0.1]}))])


def test_probe_does_not_warn_for_nothing() -> None:
    emb, volume = crops()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe(emb, volume > 0, folds=4, epochs=1)
