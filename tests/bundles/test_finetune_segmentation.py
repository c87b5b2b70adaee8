"""finetune_segmentation.yaml: from a pre-trained Swin to Dice on held-out patients and masks on the scans' grids."""

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

from anatomy_ssl.data.datalist import load_datalist
from tests.bundles.runs import CONFIGS, TerminateAt, assert_same_weights, run

CLASSES = {"lungs": [4, 5], "liver": 11}
SMALL_UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": "$len(@classes) + 1",
    "channels": [4, 8],
    "strides": [2],
    "dropout": 0.1,
}
QUICK: dict[str, Any] = {
    "classes": CLASSES,
    "pretrained": None,
    "network_def": SMALL_UNET,
    "encoder_module": "model.0",
    "spacing": [12.0, 12.0, 12.0],
    "patch_size": [16, 16, 16],
    "num_workers": 0,
    "repeats": 2,
    "epochs": 2,
    "val_interval": 1,
    "learning_rate": 0.01,
    "tensorboard": False,
    "mlflow": False,
    "device": "$torch.device('cpu')",
}


def files(folder: Path, **changes: Any) -> list[str]:
    """The recipe, and a file that makes it quick."""
    folder.mkdir(exist_ok=True)
    last = folder / "changes.json"
    last.write_text(json.dumps({**QUICK, **changes}))
    return [str(CONFIGS / "finetune_segmentation.yaml"), str(last)]


def finetune(run_id: str, folder: Path, dataset: Path, **changes: Any) -> Path:
    """Run it in this process; returns the output folder."""
    places = {"dataset_dir": str(dataset), "output_dir": str(folder / "out")}
    monai.bundle.create_workflow(config_file=files(folder, **changes), run_id=run_id, **places).run()
    return folder / "out"


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a training and its evaluation."""
    folder = tmp_path_factory.mktemp("segmentation")
    finetune("training", folder, cohort, epochs=6, repeats=4)
    return finetune("evaluating", folder, cohort)


def test_evaluation_lists_classes_and_held_out_patients(trained: Path, cohort: Path) -> None:
    with open(trained / "evaluation" / "metrics.csv", newline="") as file:
        metrics = {name: float(value) for name, value in csv.reader(file)}
    assert metrics.keys() == {"mean_dice", "lungs", "liver"}
    # a network that finds nothing has 0; one that says lungs everywhere less than 0.15
    assert metrics["lungs"] > 0.3
    with open(trained / "evaluation" / "mean_dice_raw.csv", newline="") as file:
        listed = {row["filename"] for row in csv.DictReader(file)}
    assert listed == {item["image"] for item in load_datalist(cohort, "test")}


def test_masks_lie_on_the_scans_own_grids(trained: Path, cohort: Path, tmp_path: Path) -> None:
    """Stored in other orders of axes and cropped: shape and affine are the scan's, the lungs where the lungs are."""
    item = load_datalist(cohort, "test", keys=("image", "label"))[0]
    scan, organs = (nib.load(item[key]) for key in ("image", "label"))
    scans, truth = tmp_path / "scans", {}
    scans.mkdir()
    for name, code in {"plain": "RAS", "turned": "SLP", "flipped": "LPI"}.items():
        change = nib.orientations.ornt_transform(
            nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(tuple(code))
        )
        nib.save(scan.as_reoriented(change), scans / f"{name}.nii.gz")
        truth[name] = organs.as_reoriented(change)
    output = finetune("inferring", trained.parent, scans)
    found = {path.name.removesuffix("_mask.nii.gz"): nib.load(path) for path in (output / "masks").rglob("*.nii.gz")}
    assert found.keys() == truth.keys()
    for name, mask in found.items():
        assert mask.shape == truth[name].shape
        np.testing.assert_allclose(mask.affine, truth[name].affine, atol=1e-4)
        assert mask.get_data_dtype() == np.uint8
        lungs, predicted = np.isin(truth[name].get_fdata(), CLASSES["lungs"]), mask.get_fdata() == 1
        assert 2 * (lungs & predicted).sum() / (lungs.sum() + predicted.sum()) > 0.3


def test_resume_equals_uninterrupted(cohort: Path, tmp_path: Path) -> None:
    whole = finetune("training", tmp_path / "whole", cohort)
    stopped = tmp_path / "stopped"
    with pytest.raises((SystemExit, RuntimeError)):
        stop(stopped, cohort)
    assert (stopped / "out" / "checkpoint.pt").exists()
    finetune("training", stopped, cohort, resume=True)
    assert_same_weights(whole, stopped / "out")


def stop(folder: Path, cohort: Path) -> None:
    """Train until a signal in the second iteration."""
    workflow = monai.bundle.create_workflow(
        config_file=files(folder), run_id="training", dataset_dir=str(cohort), output_dir=str(folder / "out")
    )
    TerminateAt(2).attach(workflow.parser.get_parsed_content("train#trainer"))
    workflow.run()


def network(folder: Path, **changes: Any) -> torch.nn.Module:
    """What the recipe builds by itself: SwinUNETR."""
    parser = ConfigParser()
    own = {key: value for key, value in QUICK.items() if key not in ("network_def", "encoder_module", "pretrained")}
    folder.mkdir(exist_ok=True)
    (folder / "own.json").write_text(json.dumps({**own, "feature_size": 12, **changes}))
    parser.read_config([str(CONFIGS / "finetune_segmentation.yaml"), str(folder / "own.json")])
    return parser.get_parsed_content("network_def")


@pytest.fixture(scope="module")
def swin(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder.pt of a pre-training of one epoch with encoder_swin_unetr.yaml."""
    parser = ConfigParser.load_config_file(CONFIGS / "encoder_swin_unetr.yaml")
    size = {"crop_size": [32, 32, 32], "crop_spacing": [6.0, 6.0, 6.0], "embedding_size": 8}
    small = {**parser, "feature_size": 12, "window_size": 4, **size}
    folder = tmp_path_factory.mktemp("swin")
    return run("training", folder, cohort, epochs=1, crops_per_volume=2, **small) / "encoder.pt"


def test_starts_from_the_pretrained_swin(swin: Path, tmp_path: Path) -> None:
    state = torch.load(swin, weights_only=True)["model"]
    built = network(tmp_path / "a", pretrained=str(swin)).swinViT.state_dict()
    scratch = network(tmp_path / "b", pretrained=None).swinViT.state_dict()
    assert all(torch.equal(value, state[f"backbone.{name}"]) for name, value in built.items())
    moved = [name for name, value in scratch.items() if not torch.equal(value, built[name])]
    assert any("qkv" in name for name in moved)


def test_another_swin_is_refused(swin: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Failed to instantiate") as error:
        network(tmp_path, pretrained=str(swin), feature_size=24)
    assert "under the minimum" in str(error.value.__cause__ or error.value)


def test_without_the_encoder_file_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Failed to instantiate") as error:
        network(tmp_path, pretrained=str(tmp_path / "none.pt"))
    assert "none.pt" in str(error.value.__cause__ or error.value)


def test_scratch_overlay_changes_the_start_alone() -> None:
    assert list(ConfigParser.load_config_file(CONFIGS / "scratch.yaml")) == ["pretrained"]
