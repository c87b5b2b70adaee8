"""evaluate.yaml and probe.yaml of the PEAC bundle, in seconds: held-out radiographs of phantoms."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import monai.bundle
import pytest

from anatomy_ssl.data.phantom import write_phantom_cohort
from tests.bundles.test_peac import CONFIGS, TINY, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A list of phantoms' radiographs, and what pre-training on it left."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_cohort(folder, subjects=10, seed=0, spacings=((9.0, 9.0, 9.0),), progress=False)
    listed = json.loads((folder / "radiographs.json").read_text())
    everyone = [item for split in ("training", "validation", "test") for item in listed[split]]
    for split, lesions in (
        ("training", (0, 1, 0, 1, 0, 1)),
        ("test", (0, 1, 0, 1)),
    ):  # classes in both, whoever has them
        listed[split] = [{**everyone.pop(), "labels": {"lesion": lesion}} for lesion in lesions]
    listed["validation"] = []
    (folder / "radiographs.json").write_text(json.dumps(listed))
    return folder / "radiographs.json", train(folder / "run", folder / "radiographs.json", epochs=1)


def run(run_id: str, folder: Path, base: str, overlay: str, data: Path, output: Path, **changes: Any) -> None:
    (folder / "last.json").write_text(json.dumps(changes))
    files = [str(CONFIGS / base), str(CONFIGS / overlay), str(folder / "last.json")]
    places = {"dataset_dir": str(data), "output_dir": str(output)}
    monai.bundle.create_workflow(config_file=files, run_id=run_id, **places).run()


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_evaluation_stands_beside_random_networks(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, output = trained
    for folder in ("a", "b"):
        changes = {**TINY, "evaluation_dir": str(tmp_path / folder)}
        run("evaluating", tmp_path, "pretrain.yaml", "evaluate.yaml", data, output, **changes)
    table = rows(tmp_path / "a" / "evaluation.csv")
    assert [row["network"] for row in table] == ["trained", "random, mean of 3", "random, sd of 3"]
    assert {"order_accuracy", "order_times_chance", "token_gap", "local_gap", "token_spread"} <= table[0].keys()
    assert rows(tmp_path / "b" / "evaluation.csv")[0] == table[0]
    assert float(table[2]["token_gap"]) > 0, "the random networks share one encoder"


def test_probe_stands_beside_random_encoders(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, output = trained
    tiny = {name: TINY[name] for name in ("encoder", "tensorboard", "mlflow", "device")}
    size = {"image_size": [28, 20], "crop_size": [24, 16], "labels": ["lesion"], "probe_folds": 2}
    changes = {**tiny, **size, "pretrained": str(output / "encoder.pt")}
    run("probing", tmp_path, "train.json", "probe.yaml", data, tmp_path / "out", **changes)
    table = rows(tmp_path / "out" / "probe" / "probe.csv")
    assert [row["encoder"] for row in table] == ["trained", "random, mean of 3", "random, sd of 3"]
    assert all(0 <= float(row["lesion"]) <= 1 for row in table)
