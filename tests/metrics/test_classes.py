"""Metrics over classes of which some cannot be judged."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.metrics import AveragePrecisionMetric, ROCAUCMetric
from sklearn.metrics import average_precision_score, roc_auc_score

from anatomy_ssl.metrics.classes import ClassMean

rng = torch.Generator().manual_seed(0)
SCORES = torch.randn(40, 4, generator=rng)
LABELS = (torch.rand(40, 4, generator=rng) < 0.4).float()
LABELS[:, 1], LABELS[:, 3] = 0, 1


def measured(columns: list[int], metric: Any = ROCAUCMetric, **options: Any) -> dict[str, Any]:
    """Metrics of an engine that sees two batches of these classes."""
    engine = Engine(lambda _, rows: (SCORES[rows][:, columns], LABELS[rows][:, columns]))
    ClassMean(metric(), **options).attach(engine, "mean")
    return engine.run([slice(0, 25), slice(25, 40)]).metrics


@pytest.mark.parametrize(
    ("metric", "oracle"), [(ROCAUCMetric, roc_auc_score), (AveragePrecisionMetric, average_precision_score)]
)
def test_the_mean_is_of_the_classes_that_some_have_and_some_lack(metric: Any, oracle: Any) -> None:
    expected = [oracle(LABELS[:, i], SCORES[:, i]) for i in (0, 2)]
    assert measured([0, 1, 2, 3], metric) == {"mean": pytest.approx(sum(expected) / 2)}
    assert measured([2], metric) == {"mean": pytest.approx(expected[1])}


def test_classes_by_their_names(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        metrics = measured([0, 1, 2], classes=["liver", "spleen", "lungs"])
    assert list(metrics) == ["mean", "liver", "spleen", "lungs"]
    assert all(isinstance(value, float) for value in metrics.values())
    assert metrics["liver"] == pytest.approx(roc_auc_score(LABELS[:, 0], SCORES[:, 0]))
    assert math.isnan(metrics["spleen"])
    assert metrics["mean"] == pytest.approx((metrics["liver"] + metrics["lungs"]) / 2)
    assert caplog.messages == ["all samples or none have spleen: no mean can be computed for it"]


@pytest.mark.parametrize("columns", [[1], [1, 3]])
def test_nothing_to_judge(columns: list[int]) -> None:
    assert math.isnan(measured(columns)["mean"])
