"""Dice of organs by patient: what is written of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from anatomy_ssl.handlers import DiceTable

DICE = torch.tensor([[0.5, float("nan"), 1.0], [0.7, float("nan"), 0.2]])


def evaluate(folder: Path, batches: list[Any]) -> list[dict[str, str]]:
    """The rows that an evaluator with these values leaves."""
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.COMPLETED, lambda e: setattr(e.state, "metric_details", {"mean_dice": DICE}))
    table = DiceTable(["liver", "spleen", "aorta"], folder)
    table.attach(engine)
    engine.run(batches)
    engine.run(batches)
    with open(folder / "dice.csv", newline="") as file:
        return list(csv.DictReader(file))


DECOLLATED = [[{"source": "a.nii", "subject": "one"}], [{"source": "b.nii"}]]
COLLATED = [{"source": ["a.nii", "b.nii"], "subject": ["one", ""]}]


@pytest.mark.parametrize("batches", [DECOLLATED, COLLATED], ids=["decollated", "collated"])
def test_rows_means_and_deviations(batches: list[Any], tmp_path: Path) -> None:
    """Of the organs that a scan has; a second evaluation replaces the first."""
    first, second, mean, sd = evaluate(tmp_path, batches)
    assert first == {"subject": "one", "image": "a.nii", "liver": "0.5", "spleen": "", "aorta": "1.0", "mean": "0.75"}
    assert (second["subject"], second["spleen"]) == ("", "")
    assert float(second["mean"]) == pytest.approx(0.45)
    assert (mean["subject"], mean["spleen"], sd["spleen"]) == ("mean", "", "")
    assert float(mean["liver"]) == pytest.approx(0.6)
    assert float(mean["mean"]) == pytest.approx(0.6)
    assert float(sd["aorta"]) == pytest.approx(np.std([1, 0.2], ddof=1))
    assert "| one" in (tmp_path / "dice.md").read_text()
