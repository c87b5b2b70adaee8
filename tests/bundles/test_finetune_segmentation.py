"""finetune_segmentation.yaml: from a pre-trained Swin to Dice on held-out patients and masks on the scans' grids."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
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
    "model": SMALL_UNET,
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


def test_a_frozen_encoder_gets_no_step(cohort: Path, tmp_path: Path) -> None:
    """The optimiser has a state for what it has moved: all but the encoder's weight and bias."""
    still = {}
    for epochs in (0, 1):
        output = finetune("training", tmp_path / str(epochs), cohort, epochs=1, repeats=1, freeze_epochs=epochs)
        optimizer = torch.load(output / "checkpoint.pt", weights_only=True)["optimizer"]
        everything = [number for group in optimizer["param_groups"] for number in group["params"]]
        still[epochs] = len(everything) - len(optimizer["state"])
    assert still[0] == 0
    assert still[1] >= 2


def test_a_longer_run_goes_on_by_its_own_schedule(cohort: Path, tmp_path: Path) -> None:
    """The learning rate falls to zero at the end of training, and not before it rises again."""
    output = finetune("training", tmp_path, cohort, epochs=2, repeats=1)
    rates = []
    for epochs in (2, 4):
        finetune("training", tmp_path, cohort, epochs=epochs, repeats=1, resume=True)
        saved = torch.load(output / "checkpoint.pt", weights_only=True)
        rates.append(saved["optimizer"]["param_groups"][0]["lr"])
    assert rates == pytest.approx([0.0, 0.0], abs=1e-9)


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
    own = {key: value for key, value in QUICK.items() if key not in ("model", "encoder_module", "pretrained")}
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


def test_scratch_overlay_has_no_key_of_its_own() -> None:
    """It takes the pretrained weights away, with what protects them."""
    scratch = ConfigParser.load_config_file(CONFIGS / "scratch.yaml")
    assert scratch == {"pretrained": None, "freeze_epochs": 0, "layerwise_decay": 1.0}
    for base in ("train.json", "finetune_segmentation.yaml"):
        assert scratch.keys() <= ConfigParser.load_config_file(CONFIGS / base).keys()


def test_few_labels_leave_validation_and_test_as_they_are(cohort: Path, tmp_path: Path) -> None:
    """label_fraction takes patients away from the training alone, and nobody is in two parts."""
    found = {}
    for fraction in (1.0, 2):
        parser = ConfigParser()
        parser.read_config(files(tmp_path, label_fraction=fraction, cache_rate=0.0))
        parser["dataset_dir"] = str(cohort)
        data = {part: parser.get_parsed_content(f"{part}#dataset").data for part in ("train", "validate", "test")}
        found[fraction] = {part: {item["subject"] for item in items} for part, items in data.items()}
    everyone, few = found[1.0], found[2]
    assert (few["validate"], few["test"]) == (everyone["validate"], everyone["test"])
    assert len(few["train"]) == 2
    assert few["train"] < everyone["train"]
    assert sum(map(len, everyone.values())) == len(set.union(*everyone.values()))


def test_scans_of_one_name_do_not_replace_one_another(trained: Path, cohort: Path, tmp_path: Path) -> None:
    """Masks repeat the folders that the scans lie in; labels that a list names but are not there are not asked for."""
    items = []
    for name, item in zip("ab", load_datalist(cohort, "test")):
        (tmp_path / name).mkdir()
        shutil.copy(item["image"], tmp_path / name / "ct.1.nii.gz")
        items.append({"image": f"{name}/ct.1.nii.gz", "label": f"{name}/absent.nii.gz", "subject": name})
    (tmp_path / "list.json").write_text(json.dumps({"test": items}))
    folder = tmp_path / "folder"
    (folder / "out").mkdir(parents=True)
    shutil.copy(trained / "model.pt", folder / "out")
    output = finetune("inferring", folder, tmp_path / "list.json")
    found = {str(path.relative_to(output / "masks")) for path in output.rglob("*.nii.gz")}
    assert found == {"a/ct.1_mask.nii.gz", "b/ct.1_mask.nii.gz"}


def test_evaluating_needs_no_encoder_file(trained: Path, cohort: Path, tmp_path: Path) -> None:
    """Only model.pt, which has all weights; and says so where there is none."""
    nowhere = str(tmp_path / "nowhere.pt")
    with pytest.raises(RuntimeError) as refused:
        finetune("evaluating", tmp_path, cohort, pretrained=nowhere)
    assert f"no weights at {tmp_path / 'out' / 'model.pt'}" in repr(refused.value.__cause__)
    (tmp_path / "out").mkdir()
    shutil.copy(trained / "model.pt", tmp_path / "out")
    output = finetune("evaluating", tmp_path, cohort, pretrained=nowhere)
    assert (output / "evaluation" / "metrics.csv").read_text() == (trained / "evaluation" / "metrics.csv").read_text()


def test_flat_scans(tmp_path: Path) -> None:
    """In two dimensions, whether or not the file has a third axis: masks where they belong."""
    items = []
    for i in range(4):
        x, y = np.mgrid[:40, :34]
        lesion = (x - 24 - i) ** 2 + (y - 10) ** 2 < 30
        for name, values in (("scan", 50.0 * (x > 6) + 100 * lesion), ("label", lesion)):
            values = values.astype(np.float32)
            nib.save(
                nib.Nifti1Image(values[..., None] if i % 2 else values, np.diag([-2.0, 2.0, 1.0, 1.0])),
                tmp_path / f"{name}{i}.nii.gz",
            )
        items.append({"image": f"scan{i}.nii.gz", "label": f"label{i}.nii.gz", "subject": f"{i}"})
    (tmp_path / "list.json").write_text(json.dumps({"training": items[:2], "test": items[2:]}))
    flat = {"spatial_dims": 2, "spacing": [2.0, 2.0], "patch_size": [16, 16], "classes": {"lesion": None}}
    flat |= {"model": {**SMALL_UNET, "spatial_dims": 2, "dropout": 0.0}, "val_items": [], "validation_fraction": 0}
    folder = tmp_path / "run"
    finetune("training", folder, tmp_path / "list.json", epochs=10, repeats=8, **flat)
    output = finetune("inferring", folder, tmp_path / "list.json", **flat)
    for i in range(4):
        mask, truth = (nib.load(f) for f in (output / "masks" / f"scan{i}_mask.nii.gz", tmp_path / f"label{i}.nii.gz"))
        np.testing.assert_allclose(mask.affine, truth.affine, atol=1e-4)
        found, lesion = (np.asarray(image.dataobj).reshape(40, 34) > 0 for image in (mask, truth))
        assert mask.shape[:2] == (40, 34)
        assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.7


def test_scans_smaller_than_the_patch_see_their_border_repeated(tmp_path: Path) -> None:
    """As in training, where zero would be tissue and not air."""
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "finetune_segmentation.yaml"))
    parser["patch_size"] = [8, 8, 8]
    seen: list[torch.Tensor] = []
    parser.get_parsed_content("validate#inferer")(-torch.ones(1, 1, 4, 12, 6), lambda x: (seen.append(x.clone()), x)[1])
    assert all(bool((patch == -1).all()) for patch in seen)


def test_trains_on_all_patients_without_validation(cohort: Path, tmp_path: Path) -> None:
    output = finetune("training", tmp_path, cohort, epochs=1, val_items=[], validation_fraction=0)
    assert {file.name for file in output.iterdir()} == {"checkpoint.pt", "model.pt"}


def test_two_processes(cohort: Path, tmp_path: Path) -> None:
    """multi_gpu_train.yaml fits this recipe, frozen encoder and layer-wise rates included: equal weights, one file."""
    record = {"_target_": "tests.bundles.runs.RecordProcess", "folder": str(tmp_path)}
    record |= {"network": "@network_def", "evaluator": "@validate#evaluator"}
    three = "$anatomy_ssl.data.load_datalist(@dataset_dir, 'all', keys=('image', 'label'))[:3]"
    changes = {"layerwise_decay": 0.7, "freeze_epochs": 1, "val_items": three, "+train#handlers": [record]}
    names = files(tmp_path, **changes)
    names.insert(1, str(CONFIGS / "multi_gpu_train.yaml"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [*launch, "-m", "monai.bundle", "run", "training", "--config_file", str(names)]
    command += ["--dataset_dir", str(cohort), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = [torch.load(tmp_path / f"process_{i}.pt", weights_only=False) for i in range(2)]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["metrics"] == second["metrics"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"checkpoint.pt", "model.pt"}
