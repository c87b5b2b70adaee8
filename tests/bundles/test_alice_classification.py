"""finetune_classification.yaml: whole volumes, by the Swin transformer of a pre-trained SwinUNETR."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from anatomy_ssl.engines.comparison import read_metrics
from tests.bundles.test_alice_finetune import CONFIGS, own_network, save

QUICK: dict[str, Any] = {
    "labels": ["bright", "left"],
    "pretrained": None,
    "units": "off",  # volumes of noise, without air or bone
    "volume_size": [32, 32, 32],
    "crop_spacing": [3.0, 3.0, 3.0],
    "epochs": 8,
    "repeats": 2,
    "learning_rate": 0.002,
    "val_interval": 4,
    "bootstrap": 10,
    "tensorboard": False,
    "mlflow": False,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datalist of 16 small volumes, half of which hold a bright ball; of one it is not known."""
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(0)
    items = []
    for i in range(16):
        grid = np.stack(np.mgrid[:24, :24, :20], -1)
        bright, centre = i % 2, rng.uniform(8, 14, 3)
        values = rng.normal(-100, 20, grid.shape[:3]) + 250 * bright * (((grid - centre) ** 2).sum(-1) < 25)
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([-3, 3, 4, 1.0])), folder / f"{i}.nii.gz")
        labels = {"bright": None if i == 5 else bright, "left": int(centre[0] < 11), "unused": 1}
        items.append({"image": f"{i}.nii.gz", "subject": f"patient {i}", "labels": labels})
    splits = {"training": items[:8], "validation": items[8:10], "test": items[10:]}
    (folder / "list.json").write_text(json.dumps(splits))
    return folder / "list.json"


def files(folder: Path, overlays: tuple[str, ...] = (), **changes: Any) -> list[str]:
    """The recipe, its overlays, and a file that makes it quick."""
    folder.mkdir(exist_ok=True)
    last = folder / "changes.json"
    last.write_text(json.dumps({**QUICK, **changes}))
    names = ["train.json", "finetune_classification.yaml"]
    return [*(str(CONFIGS / name) for name in names), str(last), *(str(CONFIGS / name) for name in overlays)]


def test_learns_and_writes_every_volume(volumes: Path, tmp_path: Path) -> None:
    """AUC of each label, and one row for each held-out patient."""
    for run_id in ("training", "evaluating"):
        places = {"dataset_dir": str(volumes), "output_dir": str(tmp_path / "out")}
        monai.bundle.create_workflow(config_file=files(tmp_path), run_id=run_id, **places).run()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint.pt", "model.pt", "evaluation"}
    with open(tmp_path / "out" / "evaluation" / "auc.csv", newline="") as file:
        auc = {row["label"]: row["auc"] for row in csv.DictReader(file)}
    assert auc.keys() == {"bright", "left", "mean"}
    assert float(auc["bright"]) == 1
    assert "mean_auc" in read_metrics(tmp_path / "out")
    with open(tmp_path / "out" / "evaluation" / "predictions.csv", newline="") as file:
        assert [row["subject"] for row in csv.DictReader(file)] == [f"patient {i}" for i in range(10, 16)]


def test_starts_from_the_swin_of_the_whole_network(volumes: Path, tmp_path: Path) -> None:
    """encoder.pt as the pre-training wrote it; scratch.yaml takes it away."""
    pretraining = own_network(tmp_path / "a", pretrained=None)
    path = save(tmp_path / "encoder.pt", pretraining)
    parser = ConfigParser()
    parser.read_config(files(tmp_path / "b", pretrained=str(path)))
    backbone = parser.get_parsed_content("network_def").encoder.backbone.state_dict()
    expected = pretraining.swinViT.state_dict()
    assert backbone.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.items())
    parser.read_config(files(tmp_path / "b", ("scratch.yaml",), pretrained=str(path)))
    assert parser.get_parsed_content("pretrained") is None


def test_the_middle_of_volumes_of_any_size(volumes: Path, tmp_path: Path) -> None:
    """Larger ones are cut, smaller ones see their border repeated, where zero would be tissue."""
    parser = ConfigParser()
    parser.read_config(files(tmp_path, cache_rate=0.0))
    parser["dataset_dir"] = str(volumes)
    item = parser.get_parsed_content("validate#dataset")[0]
    assert item["image"].shape == (1, 32, 32, 32)
    assert item["label"].tolist() == [0, item["label"][1]]
    assert item["image"].max() < 0.5
    assert item["image"][0, 0].std() > 0
