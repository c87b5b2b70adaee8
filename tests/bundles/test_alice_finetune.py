"""train.json of the Alice bundle: from a pre-trained SwinUNETR to the Dice of every organ of every held-out patient."""

from __future__ import annotations

import csv
import json
import re
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
from anatomy_ssl.engines.comparison import compare, read_images, read_metrics
from anatomy_ssl.weights import read_state
from tests.bundles.runs import TerminateAt, assert_same_weights

CONFIGS = Path(__file__).parents[2] / "bundles" / "alice" / "configs"
CLASSES = {"lungs": [4, 5], "liver": 11}
SMALL_UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": "@channels",
    "out_channels": "$len(@classes) + 1",
    "channels": [4, 8],
    "strides": [2],
    "dropout": 0.1,
}
# a network that takes crops of 16^3 in milliseconds; SwinUNETR itself is built, and fed once, below
QUICK: dict[str, Any] = {
    "classes": CLASSES,
    "intensity_window": [-900.0, 200.0],
    "pretrained": None,
    "model": SMALL_UNET,
    "encoder_module": "model.0",
    "crop_spacing": [12.0, 12.0, 12.0],
    "crop_size": [16, 16, 16],
    "repeats": 2,
    "epochs": 2,
    "val_interval": 1,
    "learning_rate": 0.01,
    "background_weight": 1.0,  # organs are no rare voxels in crops this coarse
    "tensorboard": False,
    "mlflow": False,
    "device": "cpu",
}


def files(folder: Path, overlays: tuple[str, ...] = (), **changes: Any) -> list[str]:
    """The recipe, a file that makes it quick, overlays, and a file with the changes."""
    folder.mkdir(exist_ok=True)
    quick, last = folder / "quick.json", folder / "changes.json"
    quick.write_text(json.dumps(QUICK))
    last.write_text(json.dumps(changes))
    return [str(CONFIGS / "train.json"), str(quick), *(str(CONFIGS / name) for name in overlays), str(last)]


def finetune(run_id: str, folder: Path, dataset: Path, overlays: tuple[str, ...] = (), **changes: Any) -> Path:
    """Run it in this process; returns the output folder."""
    places = {"dataset_dir": str(dataset), "output_dir": str(folder / "out")}
    config = files(folder, overlays, **changes)
    monai.bundle.create_workflow(config_file=config, run_id=run_id, **places).run()
    return folder / "out"


def parsed(folder: Path, dataset: Path, overlays: tuple[str, ...] = (), **changes: Any) -> ConfigParser:
    """The same configuration, not run."""
    parser = ConfigParser()
    parser.read_config(files(folder, overlays, **changes))
    parser.update({"dataset_dir": str(dataset), "output_dir": str(folder / "out")})
    return parser


def own_network(folder: Path, **changes: Any) -> torch.nn.Module:
    """What train.json builds by itself."""
    folder.mkdir(exist_ok=True)
    (folder / "own.json").write_text(json.dumps(changes))
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(folder / "own.json")])
    return parser.get_parsed_content("network_def")


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a training and its evaluation."""
    folder = tmp_path_factory.mktemp("alice")
    finetune("training", folder, cohort, epochs=6, repeats=4)
    return finetune("evaluating", folder, cohort)


def test_dice_of_every_organ_of_every_patient(trained: Path, cohort: Path) -> None:
    """One row a held-out scan, their mean and sd; the metrics file that `compare` reads says the same."""
    with open(trained / "evaluation" / "dice.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    *scans, mean, sd = rows
    test = load_datalist(cohort, "test")
    assert [(row["subject"], row["image"]) for row in scans] == [(item["subject"], item["image"]) for item in test]
    assert (mean["subject"], sd["subject"]) == ("mean", "sd")
    metrics = read_metrics(trained)
    assert metrics.keys() == {"mean_dice", *CLASSES}
    for name in CLASSES:
        values = [float(row[name]) for row in scans if row[name]]
        assert float(mean[name]) == pytest.approx(np.mean(values))
        assert metrics[name] == pytest.approx(np.mean(values), abs=1e-4)
    assert read_images(trained)["mean_dice"] == pytest.approx({r["image"]: float(r["mean"]) for r in scans}, abs=1e-4)
    # a network that finds nothing has 0; one that says lungs everywhere less than 0.15
    assert metrics["lungs"] > 0.3
    table = (trained / "evaluation" / "dice.md").read_text()
    assert all(item["subject"] in table for item in test)


def test_a_run_leaves_the_best_network_and_a_checkpoint(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {"checkpoint.pt", "model.pt", "evaluation", "pictures"}
    assert all(torch.isfinite(value).all() for value in read_state(trained / "model.pt").values())


@pytest.mark.parametrize(("fraction", "expected"), [(1, 1), (2, 2), (1.0, 5), (0.4, 2)])
def test_labels_of_few_patients(fraction: float, expected: int, cohort: Path, tmp_path: Path) -> None:
    """A number of patients or a share; validation and test stay as they are."""
    data = {}
    for name, changes in (("few", {"label_fraction": fraction}), ("all", {})):
        parser = parsed(tmp_path, cohort, cache_rate=0.0, **changes)
        items = {part: parser.get_parsed_content(f"{part}_items") for part in ("train", "val", "test")}
        data[name] = {part: {item["subject"] for item in values} for part, values in items.items()}
    assert len(data["few"]["train"]) == min(expected, len(data["all"]["train"]))
    assert data["few"]["train"] <= data["all"]["train"]
    assert (data["few"]["val"], data["few"]["test"]) == (data["all"]["val"], data["all"]["test"])


def test_batches(cohort: Path, tmp_path: Path) -> None:
    """Crops of the window scaled to 0 to 1, with class indices."""
    parser = parsed(tmp_path, cohort, crops_per_volume=8, volumes_per_batch=2)
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape == batch["label"].shape == (16, 1, 16, 16, 16)
    assert batch["image"].min() > -0.2
    assert 0.5 < batch["image"].max() < 1.3
    assert set(batch["label"].unique().tolist()) == {0, 1, 2}


def test_labels_under_another_key(cohort: Path, tmp_path: Path) -> None:
    parser = parsed(tmp_path, cohort, label_key="lesion", classes={"lesion": None}, augmentation=[])
    items = [parser.get_parsed_content("train#dataset")[i] for i in range(3)]
    assert all(set(item) == {"image", "label", "subject", "source"} for item in items)
    assert {value for item in items for value in item["label"].unique().tolist()} <= {0, 1}


def test_native_voxels(cohort: Path, tmp_path: Path) -> None:
    """crop_spacing null resamples nothing."""
    spacings = []
    for spacing in (None, [12.0, 12.0, 12.0]):
        parser = parsed(tmp_path, cohort, crop_spacing=spacing, cache_rate=0.0)
        item = parser.get_parsed_content("validate#dataset")[0]
        assert item["image"].shape == item["label"].shape
        spacings.append(sorted(round(float(v), 3) for v in item["image"].pixdim))
    source = nib.load(load_datalist(cohort, "validation")[0]["image"])
    assert spacings == [sorted(float(v) for v in source.header.get_zooms()), [12.0] * 3]


def test_resume_equals_uninterrupted(cohort: Path, tmp_path: Path) -> None:
    whole = finetune("training", tmp_path / "whole", cohort)
    stopped = tmp_path / "stopped"
    workflow = monai.bundle.create_workflow(
        config_file=files(stopped), run_id="training", dataset_dir=str(cohort), output_dir=str(stopped / "out")
    )
    TerminateAt(2).attach(workflow.parser.get_parsed_content("train#trainer"))
    with pytest.raises((SystemExit, RuntimeError)):
        workflow.run()
    assert (stopped / "out" / "checkpoint.pt").exists()
    finetune("training", stopped, cohort, resume=True)
    assert_same_weights(whole, stopped / "out")


def test_scratch_yaml_is_the_baseline(cohort: Path, tmp_path: Path) -> None:
    changes = {"pretrained": str(tmp_path / "none.pt"), "freeze_epochs": 1, "layerwise_decay": 0.5}
    (tmp_path / "protect.json").write_text(json.dumps(changes))
    parser = ConfigParser()
    parser.read_config([*files(tmp_path), str(tmp_path / "protect.json"), str(CONFIGS / "scratch.yaml")])
    assert parser.get_parsed_content("pretrained") is None
    assert parser.get_parsed_content("freeze_epochs") == 0
    assert len(parser.get_parsed_content("optimizer").param_groups) == 1
    assert (
        ConfigParser.load_config_file(CONFIGS / "scratch.yaml").keys()
        <= ConfigParser.load_config_file(CONFIGS / "train.json").keys()
    )


def test_starts_from_the_whole_pretrained_network(tmp_path: Path) -> None:
    """Encoder and decoder; the output, for the classes, is new, whatever the pre-training restored."""
    pretraining = own_network(tmp_path / "a", pretrained=None, model={**own_model(), "out_channels": 1})
    path = save(tmp_path / "encoder.pt", pretraining)
    built, file = own_network(tmp_path / "b", pretrained=str(path)).state_dict(), pretraining.state_dict()
    new = [name for name, value in built.items() if value.shape != file[name].shape or not value.equal(file[name])]
    assert new == ["out.conv.conv.weight", "out.conv.conv.bias"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_size": 24}, "under the minimum"),
        ({"intensity_window": [-200.0, 300.0]}, "intensity_window"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Another network, and the same network fed with other intensities."""
    path = save(tmp_path / "encoder.pt", own_network(tmp_path / "a", pretrained=None), intensity_window=[-125.0, 225.0])
    own_network(tmp_path / "b", pretrained=str(path))
    with pytest.raises(RuntimeError) as refused:
        own_network(tmp_path / "c", pretrained=str(path), **changes)
    assert message in repr(refused.value.__cause__)


def test_scans_that_are_not_in_hounsfield_units_are_named(cohort: Path, tmp_path: Path) -> None:
    """The window of fixed HU would turn them to nothing."""
    item = dict(load_datalist(cohort, "training")[0])
    image = nib.load(item["image"])
    item["image"] = str(tmp_path / "rescaled.nii.gz")
    nib.save(nib.Nifti1Image((np.asarray(image.dataobj) / 4000).astype(np.float32), image.affine), item["image"])
    config = parsed(tmp_path, cohort, train_items=[item], pretrained=None)
    with pytest.raises(RuntimeError) as error:
        config.get_parsed_content("train#dataset")
    assert re.search(r"rescaled.nii.gz: .*no Hounsfield units", str(error.value.__cause__))


def test_base_overlay_is_the_usual_swin_unetr(tmp_path: Path) -> None:
    """encoder_base.yaml: 62 million weights, and what pretrain.yaml makes without an overlay."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), str(CONFIGS / "encoder_base.yaml")])
    parser["pretrained"] = None
    network = parser.get_parsed_content("network_def")
    assert 61e6 < sum(p.numel() for p in network.parameters()) < 63e6
    plain = ConfigParser.load_config_file(CONFIGS / "pretrain.yaml")
    for key in ("feature_size", "depths", "num_heads", "window_size"):
        assert parser[key] == plain[key], key


def test_compare_with_scratch(cohort: Path, tmp_path: Path) -> None:
    """The command that a claim is made by takes these files and reads what their evaluation wrote, of each patient."""
    path = save(tmp_path / "encoder.pt", parsed(tmp_path, cohort).get_parsed_content("network_def"))
    few = {"label_fraction": 1, "keep": "last", "epochs": 1, "repeats": 1, "val_items": [], "validation_fraction": 0}
    for method, start in (("pretrained", str(path)), ("scratch", None)):
        for seed in (0, 1):
            folder = tmp_path / "compared" / method / f"seed{seed}"
            folder.mkdir(parents=True)
            for run_id in ("training", "evaluating"):
                finetune(run_id, folder, cohort, **few, pretrained=start, seed=seed)
            (folder / "out" / "evaluation").rename(folder / "evaluation")
    options = {"dataset_dir": str(cohort), "pretrained": str(path), **few}
    baselines = {"scratch": str(CONFIGS / "scratch.yaml")}
    table = compare([str(CONFIGS / "train.json")], baselines, tmp_path / "compared", (0, 1), options=options)
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == {"mean_dice", *CLASSES}
    assert {row["method"] for row in rows} == {"pretrained", "scratch", "pretrained - scratch"}
    assert {row["over"] for row in rows if row["metric"] == "mean_dice"} >= {"seeds", "images"}


def test_two_processes(cohort: Path, tmp_path: Path) -> None:
    """multi_gpu_train.yaml, frozen encoder and layer-wise rates included: equal weights, one file."""
    record = {"_target_": "tests.bundles.runs.RecordProcess", "folder": str(tmp_path)}
    record |= {"network": "@network_def", "evaluator": "@validate#evaluator"}
    three = "$anatomy_ssl.data.load_datalist(@dataset_dir, 'all', keys=('image', 'label'))[:3]"
    changes = {"layerwise_decay": 0.7, "freeze_epochs": 1, "val_items": three, "+train#handlers": [record]}
    names = files(tmp_path, ("multi_gpu_train.yaml",), epochs=1, **changes)
    names = [str(names[0]), str(names[1]), str(names[3]), str(names[2])]  # its device over that of the quick file
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [*launch, "-m", "monai.bundle", "run", "training", "--config_file", str(names)]
    command += ["--dataset_dir", str(cohort), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = [torch.load(tmp_path / f"process_{i}.pt", weights_only=False) for i in range(2)]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["metrics"] == second["metrics"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"checkpoint.pt", "model.pt", "pictures"}


def own_model() -> dict[str, Any]:
    """`model` as train.json has it."""
    return ConfigParser.load_config_file(CONFIGS / "train.json")["model"]


def save(path: Path, network: torch.nn.Module, **record: Any) -> Path:
    """Weights with the record of a pre-training."""
    torch.save({"model": network.state_dict(), "provenance": record}, path)
    return path
