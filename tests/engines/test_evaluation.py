"""A planted encoder is told from random ones, on patients that the regression has not seen."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import DataLoader

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.engines.evaluation import PositionEvaluation
from anatomy_ssl.metrics.position import position_table
from tests.engines.planted import ChannelMeans, crops, write_planted


def evaluation(folder: Path, **changes: Any) -> PositionEvaluation:
    """Four training patients, three held out."""
    options: dict[str, Any] = {
        "encoder": ChannelMeans(seed=5),
        "checkpoints": {"planted": write_planted(folder / "planted.pt")},
        "random_encoders": [ChannelMeans(seed=seed) for seed in range(3)],
        "train_loader": DataLoader(crops(range(4), 20), batch_size=6),
        "test_loader": DataLoader(crops(range(4, 7), 20, seed=1), batch_size=6),
        "output_dir": str(folder / "out"),
        "figures": [],
    }
    return PositionEvaluation(**{**options, **changes})


def test_planted_beats_random(tmp_path: Path) -> None:
    """By every measure, and what is written is what is returned."""
    rows = evaluation(tmp_path).run()
    planted, mean, sd = rows
    assert [row["encoder"] for row in rows] == ["planted", "random, mean of 3", "random, sd of 3"]
    assert planted["rho_within"] > 0.99
    assert planted["rho_across"] > 0.99
    assert planted["r2"] > 0.99
    assert planted["median_error_mm"] < 5
    assert abs(mean["rho_within"]) < 0.5
    assert mean["r2"] < 0.5
    assert mean["median_error_mm"] > 50
    assert sd["r2"] > 0
    with open(tmp_path / "out" / "evaluation.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [{k: v if k == "encoder" else float(v) for k, v in row.items()} for row in written] == rows
    assert "planted" in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")


def test_the_random_row_is_the_mean_and_sd_of_the_saved_embeddings(tmp_path: Path) -> None:
    """The regression is fitted on the training patients' embeddings and scored on the held-out ones'."""
    run = evaluation(tmp_path)
    _, mean, sd = run.run()
    scores = []
    for i in range(3):
        train, test = (Embeddings.load(run.embedding_path(split, f"random_{i}")) for split in ("training", "test"))
        assert set(train.subject) == {f"p{k:02d}" for k in range(4)}
        assert set(test.subject) == {f"p{k:02d}" for k in range(4, 7)}
        scores.append(position_table(train, test))
    for key in scores[0]:
        values = [score[key] for score in scores]
        assert mean[key] == pytest.approx(np.mean(values))
        assert sd[key] == pytest.approx(np.std(values, ddof=1))


def test_the_given_architecture_is_not_changed(tmp_path: Path) -> None:
    """Every checkpoint fills a copy, so one architecture serves several methods."""
    encoder = ChannelMeans(seed=5)
    before = encoder.linear.weight.clone()
    path = write_planted(tmp_path / "planted.pt")
    run = evaluation(tmp_path, encoder=encoder, checkpoints={"a": path, "b": path})
    assert (encoder.linear.weight == before).all()
    assert run.encoders["a"] is not run.encoders["b"]


def test_no_result_without_random_encoders(tmp_path: Path) -> None:
    """They are the ground that every number stands on."""
    with pytest.raises(ValueError, match="random_encoders is empty"):
        evaluation(tmp_path, random_encoders=[])


def test_a_patient_in_both_parts_is_refused(tmp_path: Path) -> None:
    """The regression would be scored on what it was fitted on."""
    with pytest.raises(ValueError, match="p03 is in the training and the test"):
        evaluation(tmp_path, test_loader=DataLoader(crops(range(3, 6), 20), batch_size=6)).run()


def test_figures_are_drawn_of_each_method_and_one_random_encoder(tmp_path: Path) -> None:
    """Under the names of the methods."""
    pytest.importorskip("matplotlib")
    evaluation(tmp_path, figures=["pca", "distances"]).run()
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"pca_planted.png", "pca_random_0.png", "distances.png"} <= drawn
