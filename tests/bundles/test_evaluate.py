"""evaluate.yaml and probe.yaml after a short training: tables and figures that hold what they promise."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anatomy_ssl.data.embeddings import Embeddings
from tests.bundles.runs import run

COLUMNS = ["rho_within", "rho_across", "r2", "median_error_mm", "rankme"]
METHODS = ["trained", "random_0", "random_1", "random_2"]


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluation(encoder: Path, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of the same weights compared: the exported encoder and the checkpoint."""
    checkpoints = {"exported": str(encoder), "checkpoint": str(encoder.with_name("checkpoint.pt"))}
    changes: dict[str, Any] = {"evaluation_crops": 8, "figures": ["distances", "pca"], "checkpoints": checkpoints}
    return run("evaluating", tmp_path_factory.mktemp("eval"), cohort, ("evaluate.yaml",), **changes) / "evaluation"


def test_trained_encoders_stand_beside_random_ones(evaluation: Path) -> None:
    """A row for each checkpoint, then mean and sample sd of three random encoders; one file gives one result."""
    rows = table(evaluation / "evaluation.csv")
    names = [row.pop("encoder") for row in rows]
    assert names == ["exported", "checkpoint", "random, mean of 3", "random, sd of 3"]
    assert all(list(row) == COLUMNS for row in rows)
    assert rows[0] == rows[1]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert float(rows[3]["rho_within"]) > 0
    assert "random, mean of 3" in (evaluation / "evaluation.md").read_text()


def test_every_encoder_sees_the_same_crops(evaluation: Path) -> None:
    """Of held-out patients in the test files, with origins, in mm; encoders differ, the crops do not."""
    names = ["exported", "checkpoint", "random_0", "random_1", "random_2"]
    for split, patients in (("training", 5), ("test", 2)):
        tables = [Embeddings.load(evaluation / f"embeddings_{split}_{name}.npz") for name in names]
        assert len(np.unique(tables[0].subject)) == patients
        assert len(tables[0].embedding) == 8 * patients
        assert np.abs(tables[0].origin).max() > 1
        assert all(np.array_equal(t.position, tables[0].position) for t in tables)
        embeddings = [t.embedding for t in tables[1:]]
        assert np.array_equal(tables[0].embedding, embeddings[0])
        assert len({e.tobytes() for e in embeddings}) == len(embeddings)


def test_figures_are_drawn(evaluation: Path) -> None:
    """One for all methods, and one for each method and the first random encoder."""
    drawn = {file.name for file in (evaluation / "figures").iterdir()}
    assert drawn == {"distances.png", "pca_exported.png", "pca_checkpoint.png", "pca_random_0.png"}


def test_no_random_encoder_is_refused(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        run("evaluating", tmp_path, cohort, ("evaluate.yaml",), checkpoints={"a": str(encoder)}, random_encoders=[])
    assert "random_encoders is empty" in repr(refused.value.__cause__)


def test_a_checkpoint_of_another_network_is_refused(cohort: Path, tmp_path: Path) -> None:
    torch.save({"model": {"net.weight": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(RuntimeError) as refused:
        run("evaluating", tmp_path, cohort, ("evaluate.yaml",), checkpoints={"a": str(tmp_path / "other.pt")})
    assert "other.pt fits 0.0% of Regressor" in repr(refused.value.__cause__)


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_probe(mode: str, encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """Every method has a value for every fold and task; the tests compare with the first method."""
    changes = {"lesion_key": "lesion", "folds": 3, "probe_epochs": 2, "probe_crops": 8, "probe_split": "all"}
    changes |= {"checkpoints": {"trained": str(encoder)}, "probe_mode": mode}
    folder = run("probing", tmp_path, cohort, ("probe.yaml",), **changes) / "probe"
    rows = table(folder / "probe.csv")
    assert list(rows[0]) == ["method", "fold", "metric", "value"]
    seen = {(row["method"], int(row["fold"]), row["metric"]) for row in rows}
    for metric in ("auc", "spearman"):
        assert {s for s in seen if s[2] == metric} == {
            (method, fold, metric) for method in METHODS for fold in range(3)
        }
        tests = table(folder / f"probe_{metric}.csv")
        assert [row["method"] for row in tests] == METHODS
        assert {"folds", "mean", "sd", "against", "difference", "ci_low", "ci_high", "t", "p"} <= set(tests[0])
        assert [row["against"] for row in tests] == ["", *["trained"] * 3]
        assert (folder / f"probe_{metric}.png").stat().st_size > 1000
    crops = Embeddings.load(folder / "embeddings_probe_trained.npz")
    assert len(crops.embedding) == 8 * 8
    assert 0 < (crops.extra["lesion_volume"] > 0).mean() < 1


def test_probe_names_the_patient_without_a_lesion_mask(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """An absent mask is not taken for a patient without lesions."""
    with pytest.raises(RuntimeError) as refused:
        run("probing", tmp_path, cohort, ("probe.yaml",), checkpoints={"a": str(encoder)}, lesion_key="tumour")
    assert re.search(r"phantom_00\d.nii.gz: the datalist gives no 'tumour'", str(refused.value.__cause__))
