from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from anatomy_ssl.handlers.predictions import ClassifierTables
from anatomy_ssl.metrics.auc import auc_per_label, bootstrap_auc, probabilities

NAMES = ["Mass", "No Lung Opacity / Not Normal"]


def batches() -> list[dict[str, Any]]:
    """Twelve images of six patients."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 2, generator=generator)
    labels = torch.randint(0, 2, (12, 2), generator=generator).float()
    labels[3, 0] = torch.nan
    rows = [{"pred": logits[i : i + 5], "label": labels[i : i + 5]} for i in range(0, 12, 5)]
    for start, row in zip(range(0, 12, 5), rows):
        numbers = range(start, min(start + 5, 12))
        row.update(source=[f"scans/{n}.png" for n in numbers], subject=[f"p{n // 2}" for n in numbers])
    return rows


def tables(folder: Path, **options: Any) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of predictions.csv and auc.csv."""
    engine = Engine(lambda _, batch: {"pred": batch["pred"], "label": batch["label"]})
    ClassifierTables(NAMES, folder, resamples=20, **options).attach(engine)
    engine.run(batches())
    engine.run(batches())  # a second run forgets the first
    return tuple(  # type: ignore[return-value]
        list(csv.DictReader((folder / name).read_text(encoding="utf-8").splitlines()))
        for name in ("predictions.csv", "auc.csv")
    )


@pytest.mark.parametrize("exclusive", [False, True])
def test_every_image_has_a_row(tmp_path: Path, exclusive: bool) -> None:
    """With its patient, probabilities, and labels where they are known."""
    rows, _ = tables(tmp_path, exclusive=exclusive)
    assert [row["image"] for row in rows] == [f"scans/{n}.png" for n in range(12)]
    assert [row["subject"] for row in rows] == [f"p{n // 2}" for n in range(12)]
    expected = torch.cat([probabilities(batch["pred"], exclusive) for batch in batches()])
    found = np.array([[float(row[name]) for name in NAMES] for row in rows])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert rows[3]["true Mass"] == ""
    assert {row["true Mass"] for row in rows} == {"", "0", "1"}


def test_auc_has_intervals_over_patients(tmp_path: Path) -> None:
    _, rows = tables(tmp_path, seed=4)
    scores = torch.cat([batch["pred"] for batch in batches()]).sigmoid().double().numpy()
    labels = torch.cat([batch["label"] for batch in batches()]).double().numpy()
    values = auc_per_label(scores, labels)
    bounds = bootstrap_auc(scores, labels, [f"p{n // 2}" for n in range(12)], 20, seed=4)
    assert [row["label"] for row in rows] == [*NAMES, "mean"]
    assert [float(row["auc"]) for row in rows] == pytest.approx([*values, values.mean()])
    assert [float(row["ci_low"]) for row in rows] == pytest.approx(bounds[:, 0].tolist())
    assert [float(row["ci_high"]) for row in rows] == pytest.approx(bounds[:, 1].tolist())
    assert int(rows[0]["positive"]) + int(rows[0]["negative"]) == 11
