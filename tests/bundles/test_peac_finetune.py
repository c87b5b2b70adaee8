"""train.json of the PEAC bundle, in seconds: findings of phantom radiographs."""

from __future__ import annotations

import csv
import json
import shutil
import traceback
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from anatomy_ssl.data.phantom import write_phantom_cohort
from anatomy_ssl.weights import read_state
from tests.bundles.runs import TerminateAt, assert_same_weights, weights
from tests.bundles.test_peac import CONFIGS
from tests.bundles.test_peac import TINY as PRETRAINING

TINY: dict[str, Any] = {
    "labels": ["lesion", "mass"],
    "image_size": [28, 20],
    "crop_size": [24, 16],
    "images_per_batch": 2,
    "epochs": 2,
    "warmup_epochs": 1,
    "bootstrap": 20,
    "encoder": PRETRAINING["encoder"],
    "tensorboard": False,
    "mlflow": False,
    "device": "$torch.device('cpu')",
    "val_items": "$anatomy_ssl.data.load_datalist(@dataset_dir, 'all', keys=('image',))[:4]",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The list of eight radiographs of phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_cohort(folder, subjects=8, seed=0, spacings=((9.0, 9.0, 9.0),), progress=False)
    return folder / "radiographs.json"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder.pt as pre-training leaves it."""
    path = tmp_path_factory.mktemp("pretrained") / "encoder.pt"
    parser = ConfigParser({"encoder": PRETRAINING["encoder"], "spatial_dims": 2})
    torch.manual_seed(7)
    record = {"method": "peac", "spatial_dims": 2, "grid_size": [3, 2], "cell_size": 8}
    torch.save({"model": parser.get_parsed_content("encoder").state_dict(), "provenance": record}, path)
    return path


def config(folder: Path, names: tuple[str, ...] = (), **changes: Any) -> list[str]:
    """train.json, a file that makes it tiny, overlays, and a file with the changes."""
    folder.mkdir(exist_ok=True)
    for name, content in (("tiny.json", TINY), ("last.json", changes)):
        (folder / name).write_text(json.dumps(content))
    overlays = [str(CONFIGS / name) for name in names]
    return [str(CONFIGS / "train.json"), str(folder / "tiny.json"), *overlays, str(folder / "last.json")]


def run(run_id: str, folder: Path, data: Path, names: tuple[str, ...] = (), **changes: Any) -> Path:
    """Run it in this process; returns the output folder."""
    places = {"dataset_dir": str(data), "output_dir": str(folder / "out")}
    monai.bundle.create_workflow(config_file=config(folder, names, **changes), run_id=run_id, **places).run()
    return folder / "out"


def parsed(folder: Path, data: Path, names: tuple[str, ...] = (), **changes: Any) -> ConfigParser:
    """The same, not run: its parts by their names."""
    parser = ConfigParser()
    parser.read_config(config(folder, names, **changes))
    parser.update({"dataset_dir": str(data), "output_dir": str(folder / "out")})
    return parser


def changed(cohort: Path, folder: Path, change: Any) -> Path:
    """The list, with the `labels` of every item as `change` makes them of the item's number and own labels."""
    document = json.loads(cohort.read_text())
    for split in ("training", "validation", "test"):
        for number, item in enumerate(document[split]):
            item["image"], item["lungs"] = str(cohort.parent / item["image"]), str(cohort.parent / item["lungs"])
            item["labels"] = change(number, item["labels"])
    (folder / "changed.json").write_text(json.dumps(document))
    return folder / "changed.json"


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def encoder_of(network: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pretrained part, under its own names."""
    prefix = "encoder.backbone."
    return {name.removeprefix(prefix): v for name, v in network.items() if name.startswith(prefix)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are bit-equal."""
    assert a.keys() == b.keys()
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def trained(encoder: Path, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two epochs, of which the encoder waits for one."""
    folder = tmp_path_factory.mktemp("finetuned")
    return run("training", folder, cohort, pretrained=str(encoder), freeze_epochs=1)


def test_a_run_leaves_the_best_network_and_a_checkpoint(trained: Path, encoder: Path) -> None:
    assert sorted(file.name for file in trained.iterdir()) == ["checkpoint.pt", "model.pt"]
    best, last = read_state(trained / "model.pt"), weights(trained)
    assert best.keys() == last.keys()
    assert best["head.weight"].shape == (2, 16)
    assert not same(encoder_of(last), read_state(encoder))
    assert 0 <= torch.load(trained / "checkpoint.pt", weights_only=True)["saved"]["best"] <= 1


def test_pretrained_weights_are_there_before_training(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """Under the encoder's own names; scratch.yaml takes them away, and leaves the same head, all at full rate."""
    state = {}
    for name, overlays in (("pretrained", ()), ("scratch", ("scratch.yaml",))):
        torch.manual_seed(0)
        changes = {} if overlays else {"pretrained": str(encoder), "layerwise_decay": 0.5}
        parser = parsed(tmp_path, cohort, overlays, **changes)
        state[name] = parser.get_parsed_content("network_def").state_dict()
        groups = parser.get_parsed_content("optimizer").param_groups
        assert len(groups) == (1 if overlays else 5)
    assert same(encoder_of(state["pretrained"]), read_state(encoder))
    assert not same(encoder_of(state["scratch"]), read_state(encoder))
    assert torch.equal(state["scratch"]["head.weight"], state["pretrained"]["head.weight"])


def test_learning_rates_fall_by_stages_and_follow_the_cosine(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """Embedding, each stage of the Swin, its last norm, the head; warm-up, then down to the last rate."""
    changes = {"pretrained": str(encoder), "layerwise_decay": 0.5, "learning_rate": 0.01, "epochs": 9}
    parser = parsed(tmp_path, cohort, **changes, final_learning_rate=0.0001, warmup_epochs=2)
    optimizer, scheduler = (parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    groups = optimizer.param_groups
    assert [group["name"].rpartition("backbone.")[2] for group in groups] == [
        *("patch_embed", "layers.0", "layers.1", "norm", "rest")
    ]
    assert [group["initial_lr"] for group in groups] == pytest.approx([0.01 * 0.5**k for k in (4, 3, 2, 1, 0)])
    rates = []
    for _ in range(9):
        rates.append(groups[-1]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([0.001, 0.0055, 0.01])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert groups[-1]["lr"] == 0.0001


def test_label_fractions_are_nested(cohort: Path, tmp_path: Path) -> None:
    """Shares or numbers of patients, seeded; validation and test stay as they are."""

    def patients(fraction: float, seed: int = 0) -> set[str]:
        parser = parsed(tmp_path, cohort, label_fraction=fraction, label_seed=seed)
        assert len(parser.get_parsed_content("test_items")) == 2
        return {item["subject"] for item in parser.get_parsed_content("train_items")}

    assert len(patients(1.0)) == 5
    assert len(patients(0.4)) == len(patients(2)) == 2
    assert patients(1) < patients(0.4) < patients(0.8)
    assert len({frozenset(patients(2, seed)) for seed in range(6)}) > 1


def test_resume_equals_an_uninterrupted_run(trained: Path, encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """Stopped within the second epoch: the same weights, and the same best network, in the end."""
    changes = {"pretrained": str(encoder), "freeze_epochs": 1}
    workflow = monai.bundle.create_workflow(
        config_file=config(tmp_path, **changes),
        run_id="training",
        dataset_dir=str(cohort),
        output_dir=str(tmp_path / "out"),
    )
    TerminateAt(5).attach(workflow.parser.get_parsed_content("train#trainer"))
    with pytest.raises((SystemExit, RuntimeError)):
        workflow.run()
    output = run("training", tmp_path, cohort, **changes, resume=True)
    assert_same_weights(trained, output)
    assert same(read_state(trained / "model.pt"), read_state(output / "model.pt"))


def test_evaluating_writes_tables(trained: Path, cohort: Path, tmp_path: Path) -> None:
    """Of model.pt, whatever the run's seed and without encoder.pt; several crops of an image say something else."""
    found = []
    for changes in ({}, {"seed": 1}, {"ten_crop": False}, {"mirror": "true"}):
        (tmp_path / "out").mkdir(exist_ok=True)
        shutil.copy(trained / "model.pt", tmp_path / "out")
        nowhere = str(tmp_path / "nowhere.pt")
        output = run("evaluating", tmp_path, cohort, test_split="all", pretrained=nowhere, **changes)
        with open(output / "evaluation" / "metrics.csv", newline="", encoding="utf-8") as file:
            metrics = {name: float(value) for name, value in csv.reader(file)}
        assert metrics.keys() == {"mean_auc", "lesion", "mass"}
        assert metrics["mean_auc"] == pytest.approx(np.mean([metrics["lesion"], metrics["mass"]]))
        auc = table(output / "evaluation" / "auc.csv")
        assert [row["label"] for row in auc] == ["lesion", "mass", "mean"]
        assert float(auc[-1]["auc"]) == pytest.approx(metrics["mean_auc"])
        found.append(table(output / "evaluation" / "predictions.csv"))
        assert len(found[-1]) == len({row["subject"] for row in found[-1]}) == 8
    first, reseeded, centre, mirrored = ([row["lesion"] for row in rows] for rows in found)
    assert first == reseeded
    assert first != centre
    assert first != mirrored
    assert all(0 < float(value) < 1 for value in first)


def test_exclusive_classes_and_labels_that_are_not_known(cohort: Path, tmp_path: Path) -> None:
    """Of which one image has none that is known."""

    def three(number: int, labels: dict[str, int]) -> dict[str, int | None]:
        return {name: None if number == 1 else int(number % 3 == k) for k, name in enumerate("abc")}

    changes = {"labels": ["a", "b", "c"], "exclusive": "true", "pretrained": None, "epochs": 1}
    output = run("training", tmp_path, changed(cohort, tmp_path, three), **changes)
    run("evaluating", tmp_path, tmp_path / "changed.json", **changes, test_split="all")
    for row in table(output / "evaluation" / "predictions.csv"):
        assert sum(float(row[name]) for name in "abc") == pytest.approx(1, abs=1e-4)
    with pytest.raises(RuntimeError) as refused:
        run("training", tmp_path, tmp_path / "changed.json", **changes, missing="raise")
    assert "no value for 'a'" in "".join(traceback.format_exception(refused.value))


def test_items_of_monai_label(cohort: Path, tmp_path: Path) -> None:
    """An image and a JSON file of findings each, and no patient; a directory for output that is the bundle's own."""
    items = []
    for item in ConfigParser.load_config_file(cohort)["training"][:3]:
        label = tmp_path / f"{item['subject']}.json"
        label.write_text(json.dumps(item["labels"]))
        items.append({"image": str(cohort.parent / item["image"]), "label": str(label)})
    changes = {"train#dataset#data": items, "validate#dataset#data": [], "pretrained": None, "epochs": 1}
    assert (run("training", tmp_path, cohort, **changes) / "model.pt").exists()


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({"labels": ["Pnuemonia"]}, None, "no finding 'Pnuemonia' among its labels (lesion, nodule, mass)"),
        ({}, lambda number, own: own if number else None, "gives no 'labels' for it"),
        ({}, lambda number, own: {**own, "mass": 2}, "has 'mass' = 2: give 1, 0, -1"),
        ({"crop_size": [24, 20]}, None, "which images of (24, 20) voxels do not consist of"),
        ({"crop_size": [32, 24]}, None, "min ROI size: (32, 24) is larger than max ROI size: (28, 20)"),
        ({"pretrained": "gone.pt"}, None, "no weights at gone.pt"),
    ],
)
def test_wrong_input_is_named(cohort: Path, tmp_path: Path, changes: dict[str, Any], labels: Any, message: str) -> None:
    data = cohort if labels is None else changed(cohort, tmp_path, labels)
    with pytest.raises(RuntimeError) as refused:
        run("training", tmp_path, data, **{"pretrained": None, "epochs": 1, **changes})
    assert message in "".join(traceback.format_exception(refused.value))
    assert not (tmp_path / "out" / "model.pt").exists()


def test_another_encoder_is_refused(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """Of other cells than it was trained with."""
    parser = parsed(tmp_path, cohort, pretrained=str(encoder), encoder={**TINY["encoder"], "patch_size": 8})
    with pytest.raises(RuntimeError) as refused:
        parser.get_parsed_content("network_def")
    told = "".join(traceback.format_exception(refused.value))
    assert f"{encoder} was trained with cell_size 8, this run has 16" in told


def test_properties(cohort: Path, tmp_path: Path) -> None:
    """MONAI finds every required property, and the optional ones under their names."""
    places = {"dataset_dir": str(cohort), "output_dir": str(tmp_path), "pretrained": ""}
    workflow = ConfigWorkflow(str(CONFIGS / "train.json"), workflow_type="train", logging_file=False, **TINY, **places)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_encoders_are_those_of_pretraining() -> None:
    """train.json has encoder_small.yaml's, with encoder_swin_b.yaml that of pretrain.yaml; images suit them."""
    train, pretraining = (ConfigParser.load_config_file(CONFIGS / name) for name in ("train.json", "pretrain.yaml"))
    small, large = (ConfigParser.load_config_file(CONFIGS / f"encoder_{name}.yaml") for name in ("small", "swin_b"))
    assert train["encoder"] == small["encoder"]
    assert large["encoder"] == pretraining["encoder"]
    for part, own in ((train, small), (large, pretraining)):
        assert part["crop_size"] == [n * own["cell_size"] for n in own["grid_size"]]
        assert all(image > crop for image, crop in zip(part["image_size"], part["crop_size"]))
    for key in ("mean", "std"):
        assert train[key] == pretraining[key]
    assert train["intensity"] == pretraining["intensity"]
