"""Dice by class."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.networks import one_hot

from anatomy_ssl.metrics.dice import ClassDice


def measured(pairs: list[tuple[Any, Any]], classes: list[str]) -> dict[str, float]:
    """Metrics of an engine whose output is pairs of index maps `(1, *spatial)`."""
    engine = Engine(lambda _, pair: [[one_hot(m, len(classes) + 1, dim=0)] for m in pair])
    ClassDice(classes).attach(engine, "dice")
    return engine.run(pairs).metrics


def test_classes_by_name_over_the_images_that_have_them(caplog: pytest.LogCaptureFixture) -> None:
    """By the formula; a class that no label map holds is undefined and said, found or not."""
    truth, found = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    truth[0, :2] = 1
    found[0, :1] = 1
    found[0, 3] = 3
    other = torch.where(truth == 1, 2, 0)
    with caplog.at_level(logging.WARNING):
        metrics = measured([(found, truth), (other, other)], ["lungs", "liver", "spleen"])
    assert metrics["lungs"] == pytest.approx(2 * 4 / (8 + 4), abs=1e-4)
    assert metrics["liver"] == 1
    assert math.isnan(metrics["spleen"])
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["no label map holds spleen"]


def test_one_class() -> None:
    half = torch.zeros(1, 4, 4)
    half[0, :2] = 1
    assert measured([(half, half)], ["lungs"])["lungs"] == 1
    assert math.isnan(measured([(half, half * 0)], ["lungs"])["lungs"])


def test_structures_that_overlap_have_no_background() -> None:
    """The first channel counts, which is left out by default."""
    truth = torch.zeros(2, 4, 4)
    truth[0, :2], truth[1, 1:3] = 1, 1
    found = truth.clone()
    found[0, 0] = 0
    engine = Engine(lambda _, pair: [[masks] for masks in pair])
    ClassDice(["lungs", "heart"], include_background=True).attach(engine, "dice")
    metrics = engine.run([(found, truth)]).metrics
    assert (metrics["lungs"], metrics["heart"]) == (pytest.approx(2 * 4 / (4 + 8), abs=1e-4), 1)
