"""Fine-tuning radiographs in two gloo processes: multi_gpu_train.yaml on both recipes for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from anatomy_ssl.data.phantom import write_phantom_cohort
from tests.bundles.test_peac import CONFIGS, ROOT
from tests.bundles.test_peac_finetune import TINY
from tests.bundles.test_peac_segmentation import QUICK

RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "train.json": ({**TINY, "pretrained": None}, "mean_auc"),
    "finetune_segmentation.yaml": ({**QUICK, "repeats": 1}, "mean_dice"),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight radiographs of phantoms with lesions in every second, four of them for validation."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_cohort(folder, subjects=8, spacings=((9.0, 9.0, 9.0),), radiograph_size=96, progress=False)
    document = json.loads((folder / "radiographs.json").read_text())
    items = [item for split in ("training", "validation", "test") for item in document[split]]
    for number, item in enumerate(items):
        item["labels"] = {"lesion": number % 2, "mass": number // 2 % 2}
    (folder / "radiographs.json").write_text(json.dumps({"training": items[:4], "validation": items[4:], "test": []}))
    return folder / "radiographs.json"


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_and_measure_as_one(recipe: str, cohort: Path, tmp_path: Path) -> None:
    """Equal weights and metrics in both; the metrics are those of one process with the same weights."""
    tiny, metric = RECIPES[recipe]
    tiny = {name: value for name, value in tiny.items() if name not in ("device", "val_items")}
    record = {"_target_": "tests.bundles.runs.RecordProcess", "folder": str(tmp_path)}
    record |= {"network": "@network_def", "evaluator": "@validate#evaluator"}
    changes = {**tiny, "images_per_batch": 1, "layerwise_decay": 0.7, "freeze_epochs": 1, "tensorboard": False}
    (tmp_path / "last.json").write_text(json.dumps({**changes, "+train#handlers": [record]}))
    files = [str(CONFIGS / recipe), str(CONFIGS / "multi_gpu_train.yaml"), str(tmp_path / "last.json")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", "--config_file", str(files)]
    command += ["--dataset_dir", str(cohort), "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"process_{rank}.pt", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["metrics"] == pytest.approx(second["metrics"], nan_ok=True)
    assert {"checkpoint.pt", "model.pt"} <= {file.name for file in (tmp_path / "out").iterdir()}
    parser = ConfigParser()
    (tmp_path / "one.json").write_text(json.dumps({**changes, "device": "$torch.device('cpu')"}))
    parser.read_config([str(CONFIGS / recipe), str(tmp_path / "one.json")])
    parser.update({"dataset_dir": str(cohort), "output_dir": str(tmp_path / "one")})
    parser.get_parsed_content("network_def").load_state_dict(first["weights"])
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    assert 0 <= first["metrics"][metric] <= 1
    assert evaluator.state.metrics[metric] == pytest.approx(first["metrics"][metric], abs=1e-6)
