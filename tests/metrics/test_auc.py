from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from sklearn.metrics import roc_auc_score

from anatomy_ssl.metrics.auc import MultiLabelAUC, auc_per_label, bootstrap_auc, probabilities
from tests.metrics import two_processes_auc

NAMES = ["a", "b", "c"]


def cohort(images: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and labels of which some are not known and the last is never there."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, 2, images), rng.random(images) < 0.2, np.zeros(images)], axis=1).astype(float)
    scores = (0.3 * labels + rng.random((images, 3))).round(1)
    labels[rng.random((images, 3)) < 0.2] = np.nan
    return scores, labels


def subjects(images: int = 60) -> list[str]:
    """Two images each."""
    return [f"p{i // 2}" for i in range(images)]


def test_known_labels_count_alone() -> None:
    """What the scores of unknown ones are does not matter; a label that nobody has, has no AUC."""
    scores, labels = cohort()
    values = auc_per_label(scores, labels)
    known = ~np.isnan(labels[:, 0])
    assert values[0] == roc_auc_score(labels[known, 0], scores[known, 0])
    np.testing.assert_array_equal(values, auc_per_label(np.where(np.isnan(labels), 99, scores), labels))
    assert np.isnan(values).tolist() == [False, False, True]


def test_a_bootstrap_is_the_auc_of_drawn_patients() -> None:
    """Written out: patients drawn with replacement, with all their images; ties count half."""
    scores, labels = cohort(20)
    rng = np.random.default_rng(3)
    draws = rng.multinomial(10, np.full(10, 0.1), 50)
    names = sorted(set(subjects(20)))
    values = []
    for draw in draws:
        rows = [i for i, s in enumerate(subjects(20)) for _ in range(draw[names.index(s)])]
        values.append(auc_per_label(scores[rows], labels[rows]))
    values = np.array(values)
    means = [row[~np.isnan(row)].mean() for row in values]
    bounds = bootstrap_auc(scores, labels, subjects(20), resamples=50, seed=3)
    for row, column in zip(bounds, [*values.T[:2], None, means]):
        expected = [np.nan] * 2 if column is None else np.nanpercentile(column, [2.5, 97.5])
        np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_intervals_hold_the_value_and_narrow_with_the_images() -> None:
    """Seeded; wider where a patient's images are counted as one."""
    widths = []
    for images in (60, 600):
        scores, labels = cohort(images)
        alone = [str(i) for i in range(images)]
        bounds = bootstrap_auc(scores, labels, alone, 200)
        assert (bounds[:2, 0] < auc_per_label(scores, labels)[:2]).all()
        assert (auc_per_label(scores, labels)[:2] < bounds[:2, 1]).all()
        np.testing.assert_array_equal(bounds, bootstrap_auc(scores, labels, alone, 200))
        assert not np.array_equal(bounds, bootstrap_auc(scores, labels, alone, 200, seed=1), equal_nan=True)
        widths.append(bounds[0, 1] - bounds[0, 0])
    assert widths[1] < widths[0] / 2
    scores, labels = (np.repeat(part, 4, axis=0) for part in cohort(60))
    copies = [str(i // 4) for i in range(240)]
    grouped = bootstrap_auc(scores, labels, copies, 200)
    np.testing.assert_allclose(grouped[0, 1] - grouped[0, 0], widths[0], rtol=1e-9)


@pytest.mark.parametrize(("count", "resamples", "message"), [(59, 10, "59 subjects"), (60, 1, "at least 2 resamples")])
def test_bad_input_is_named(count: int, resamples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_auc(*cohort(), subjects()[:count], resamples)


def test_probabilities() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(probabilities(logits, True).sum(dim=1), torch.ones(5))
    torch.testing.assert_close(probabilities(logits), 1 / (1 + (-logits).exp()))


def run(metric: MultiLabelAUC, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of an evaluator over batches of 7."""
    rows = [torch.from_numpy(part).float().split(7) for part in (scores, labels)]
    engine = Engine(lambda _, batch: {"pred": batch[0], "label": batch[1]})
    metric.attach(engine, "mean_auc")
    return dict(engine.run(list(zip(*rows))).metrics)


def test_the_metric_is_the_mean_and_each_label(caplog: pytest.LogCaptureFixture) -> None:
    """The undefined label is no number, named once, and left out of the mean."""
    scores, labels = cohort()
    metric = MultiLabelAUC(NAMES)
    with caplog.at_level(logging.WARNING):
        first, second = run(metric, scores, labels), run(metric, scores, labels)
    a, b, _ = auc_per_label(scores, labels)
    assert first["mean_auc"] == second["mean_auc"] == pytest.approx((a + b) / 2)
    assert (first["a"], first["b"]) == pytest.approx((a, b))
    assert np.isnan(first["c"])
    assert [record.args for record in caplog.records] == [("c",)]


def test_exclusive_classes_are_ranked_by_their_share() -> None:
    """A softmax orders images otherwise than the logits."""
    rng = np.random.default_rng(0)
    scores, labels = 3 * rng.standard_normal((50, 3)), np.eye(3)[rng.integers(0, 3, 50)]
    found = run(MultiLabelAUC(NAMES, exclusive=True), scores, labels)
    expected = auc_per_label(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), labels)
    assert [found[name] for name in NAMES] == pytest.approx(expected.tolist())
    assert run(MultiLabelAUC(NAMES), scores, labels)["a"] != found["a"]


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not belong to 2 names"):
        MultiLabelAUC(["a", "b"]).update((torch.zeros(4, 3), torch.zeros(4, 3)))


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Also where one has no image."""
    torch.multiprocessing.spawn(two_processes_auc.work, args=(str(tmp_path),), nprocs=2)
    expected = two_processes_auc.fed(range(40)).compute()
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(results) == 2
        for values in results.values():
            assert values == pytest.approx(expected, nan_ok=True)
