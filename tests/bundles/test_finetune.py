"""train.json: an encoder is fine-tuned to tell which crops hold voxels of a class."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from anatomy_ssl.handlers import SaveNetwork
from anatomy_ssl.weights import read_state
from tests.bundles.runs import CONFIGS, TINY, assert_same_weights, parsed, run, start, weights

LESIONS: dict[str, Any] = {"base": "train.json", "label_key": "lesion", "evaluation_crops": 8}
THREE_TO_VALIDATE = "$anatomy_ssl.data.load_datalist(@dataset_dir, 'all', keys=('image', @label_key))[:3]"


def encoder_of(network: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The part that was pretrained, under its own names."""
    return {name.removeprefix("encoder."): v for name, v in network.items() if name.startswith("encoder.")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are bit-equal."""
    assert a.keys() == b.keys()
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def trained(encoder: Path, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of three epochs, of which the encoder waits for one."""
    changes = {**LESIONS, "pretrained": str(encoder), "freeze_epochs": 1, "val_items": THREE_TO_VALIDATE}
    return run("training", tmp_path_factory.mktemp("finetuned"), cohort, **changes)


def test_a_run_leaves_the_best_network_and_a_checkpoint(trained: Path) -> None:
    """model.pt is a plain state dict, of all that the network has."""
    assert sorted(file.name for file in trained.iterdir()) == ["checkpoint.pt", "model.pt"]
    best = read_state(trained / "model.pt")
    assert best.keys() == weights(trained).keys()
    assert all(torch.isfinite(value).all() for value in best.values())
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert 0 <= checkpoint["saved"]["best"] <= 1


def test_targets_say_which_classes_a_crop_holds(cohort: Path, tmp_path: Path) -> None:
    """One row for each crop, by the organs in it; nothing else that batches could not stack."""
    classes = {"kidneys": [16, 17], "anything": None, "nothing": [99]}
    parser = parsed(tmp_path, cohort, base="train.json", pretrained="", classes=classes, crops_per_volume=16)
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    assert batch["image"].shape == (32, 1, 8, 8, 8)
    assert batch["label"].shape == (32, 3)
    assert batch["label"].dtype == torch.float32
    kidneys, anything, nothing = batch["label"].T
    assert 0 < kidneys.mean() < 1
    assert (anything >= kidneys).all()
    assert anything.mean() > 0.5
    assert not nothing.any()


def test_half_of_the_crops_lie_around_the_classes(cohort: Path, tmp_path: Path) -> None:
    """As positive_share says, where a patient has them."""
    shares = []
    for share in (0.0, 0.9):
        changes = {**LESIONS, "pretrained": "", "crops_per_volume": 32, "positive_share": share}
        parser = parsed(tmp_path, cohort, **changes)
        shares.append(sum(float(b["label"].mean()) for b in parser.get_parsed_content("train#dataloader")) / 3)
    assert shares[1] > shares[0] + 0.15


def test_pretrained_weights_are_there_before_training(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """At construction, so that what loads later wins; from scratch, the same head stands on other weights."""
    file = torch.load(encoder, weights_only=True)["model"]
    state = {}
    for name, path in (("pretrained", str(encoder)), ("scratch", None), ("empty", "")):
        torch.manual_seed(0)
        parser = parsed(tmp_path, cohort, base="train.json", pretrained=path)
        state[name] = parser.get_parsed_content("network_def").state_dict()
    assert same(encoder_of(state["pretrained"]), file)
    assert not same(encoder_of(state["scratch"]), file)
    assert same(state["scratch"], state["empty"])
    assert torch.equal(state["scratch"]["head.weight"], state["pretrained"]["head.weight"])


def test_scratch_yaml_is_the_baseline(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """It takes the pretrained weights away; a random encoder is neither frozen nor held back."""
    parser = parsed(tmp_path, cohort, ("scratch.yaml",), base="train.json")
    assert parser.get_parsed_content("pretrained") is None
    assert parser.get_parsed_content("freeze_epochs") == 0
    assert len(parser.get_parsed_content("optimizer").param_groups) == 1


def test_a_frozen_encoder_does_not_move(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """For freeze_epochs, the head alone learns; then both do."""
    before = torch.load(encoder, weights_only=True)["model"]
    changes = {**LESIONS, "pretrained": str(encoder), "freeze_epochs": 1}
    frozen = run("training", tmp_path, cohort, epochs=1, **changes)
    assert same(encoder_of(weights(frozen)), before)
    head = weights(frozen)["head.weight"].clone()
    run("training", tmp_path, cohort, epochs=2, resume=True, **changes)
    assert not same(encoder_of(weights(frozen)), before)
    assert not torch.equal(weights(frozen)["head.weight"], head)


def test_learning_rates_fall_towards_the_input(cohort: Path, tmp_path: Path) -> None:
    """The head has the full rate; by default everything has."""
    changes = {"base": "train.json", "pretrained": "", "learning_rate": 0.01}
    groups = parsed(tmp_path, cohort, **changes, layerwise_decay=0.5).get_parsed_content("optimizer").param_groups
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates)
    assert rates[-1] == 0.01
    assert rates[0] < 0.005
    head = parsed(tmp_path, cohort, **changes, layerwise_decay=0.5)
    network, optimizer = head.get_parsed_content("network_def"), head.get_parsed_content("optimizer")
    assert {id(p) for p in network.head.parameters()} == {id(p) for p in optimizer.param_groups[-1]["params"]}
    (only,) = parsed(tmp_path, cohort, **changes).get_parsed_content("optimizer").param_groups
    assert only["lr"] == 0.01


def test_label_fraction_takes_patients(cohort: Path, tmp_path: Path) -> None:
    """A share or a number of them, seeded and nested; validation and test stay as they are."""

    def patients(fraction: float, seed: int = 0) -> set[str]:
        parser = parsed(tmp_path, cohort, base="train.json", label_fraction=fraction, label_seed=seed)
        assert len(parser.get_parsed_content("val_items")) == 1
        assert len(parser.get_parsed_content("test_items")) == 2
        return {item["subject"] for item in parser.get_parsed_content("train_items")}

    assert len(patients(1.0)) == 5
    assert len(patients(0.4)) == len(patients(2)) == 2
    assert patients(1) < patients(0.4) < patients(0.8)
    assert len({frozenset(patients(2, seed)) for seed in range(6)}) > 1


def test_patients_of_each_part(cohort: Path, tmp_path: Path) -> None:
    """Those of the list's split, and nobody in two of them, also where the validation is split off."""
    document = json.loads(listed(cohort, tmp_path).read_text())
    document["training"] += document.pop("validation")
    (tmp_path / "two.json").write_text(json.dumps(document))
    for name, held_out in (("changed.json", 1), ("two.json", 2)):
        parser = parsed(tmp_path, tmp_path / name, **LESIONS, pretrained="", validation_fraction=0.3)
        found = {}
        for part in ("train", "validate", "test"):
            found[part] = {item["subject"] for item in parser.get_parsed_content(f"{part}#dataset").data}
        assert found["test"] == {item["subject"] for item in document["test"]}
        assert len(found["validate"]) == held_out
        assert sum(map(len, found.values())) == len(set.union(*found.values())) == 8


def test_labels_are_not_blended(cohort: Path, tmp_path: Path) -> None:
    """At a finer spacing than the label map's own there are no values between those of neighbouring organs."""
    label = nib.load(sorted((cohort / "organs").iterdir())[0])
    nib.save(nib.Nifti1Image(10 * label.get_fdata(dtype=np.float32), label.affine), tmp_path / "tens.nii.gz")
    between = {"between": [v for v in range(280) if v % 10]}
    changes = {"classes": between, "pretrained": "", "crop_spacing": [3.0, 3.0, 3.0], "label_fraction": 1.0}
    first = listed(cohort, tmp_path, label=str(tmp_path / "tens.nii.gz"))
    changes["train_items"] = "$anatomy_ssl.data.load_datalist(@dataset_dir, 'training', keys=('image', 'label'))[:1]"
    parser = parsed(tmp_path, first, base="train.json", **changes)
    assert not next(iter(parser.get_parsed_content("train#dataloader")))["label"].any()


def test_resume_equals_an_uninterrupted_run(trained: Path, encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """Stopped within the second epoch: the same weights, and the same best network, in the end."""
    changes = {**LESIONS, "pretrained": str(encoder), "freeze_epochs": 1, "val_items": THREE_TO_VALIDATE}
    stop = {"+train#handlers": [{"_target_": "tests.bundles.runs.TerminateAt", "iteration": 5}]}
    with pytest.raises(SystemExit):
        run("training", tmp_path, cohort, **changes, **stop)
    output = run("training", tmp_path, cohort, **changes, resume=True)
    assert_same_weights(trained, output)
    assert same(read_state(trained / "model.pt"), read_state(output / "model.pt"))


def test_evaluating_writes_metrics(trained: Path, encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """Of model.pt, on fixed crops of the test patients, whatever the run's seed, and without encoder.pt."""
    rows = []
    for seed, crops in ((0, 0), (1, 0), (0, 1)):
        (tmp_path / "out").mkdir(exist_ok=True)
        shutil.copy(trained / "model.pt", tmp_path / "out")
        nowhere = str(tmp_path / "nowhere.pt")
        seeds = {"seed": seed, "evaluation_seed": crops}
        output = run("evaluating", tmp_path, cohort, **LESIONS, pretrained=nowhere, test_split="all", **seeds)
        with open(output / "evaluation" / "metrics.csv", newline="", encoding="utf-8") as file:
            rows.append({name: float(value) for name, value in csv.reader(file)})
    assert rows[0] == rows[1] != rows[2]
    assert rows[0].keys() == {"auc", "lesion", "average_precision"}
    assert rows[0]["auc"] == rows[0]["lesion"]
    assert all(0 <= value <= 1 for value in rows[0].values())


def test_a_class_that_nobody_has_spoils_no_metric(cohort: Path, tmp_path: Path) -> None:
    """The best network is chosen by the others; the class's own AUC is no number."""
    changes = {"base": "train.json", "pretrained": "", "classes": {"absent": [99], "kidneys": [16, 17]}}
    changes |= {"val_items": THREE_TO_VALIDATE.replace("@label_key", "'label'"), "evaluation_crops": 8}
    output = run("training", tmp_path, cohort, **changes, epochs=1)
    assert 0 <= torch.load(output / "checkpoint.pt", weights_only=True)["saved"]["best"] <= 1
    run("evaluating", tmp_path, cohort, **changes, test_split="all")
    with open(output / "evaluation" / "metrics.csv", newline="", encoding="utf-8") as file:
        metrics = {name: float(value) for name, value in csv.reader(file)}
    assert metrics.keys() == {"auc", "absent", "kidneys", "average_precision"}
    assert np.isnan(metrics["absent"])
    assert metrics["auc"] == metrics["kidneys"]
    assert 0 <= metrics["average_precision"] <= 1


def test_evaluating_without_a_network_says_so(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        run("evaluating", tmp_path, cohort, **LESIONS)
    assert f"no weights at {tmp_path / 'out' / 'model.pt'}" in repr(refused.value.__cause__)


def test_another_encoder_is_refused_with_the_remedy(
    encoder: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other crops than it was trained on, or another architecture: one line that names file, key and what to give."""
    changes = {**LESIONS, "pretrained": str(encoder)}
    with pytest.raises(RuntimeError):
        run("training", tmp_path, cohort, **changes, crop_spacing=[4.0, 4.0, 4.0])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " - ERROR - " in line]
    assert f"{encoder} was trained with crop_spacing [12.0, 12.0, 12.0], this run has [4.0, 4.0, 4.0]" in line
    assert '--crop_spacing "[12.0, 12.0, 12.0]", or the overlay that it was trained with' in line
    other = {**TINY["encoder"], "channels": [6, 10]}
    with pytest.raises(RuntimeError) as refused:
        run("training", tmp_path, cohort, **changes, **{"+encoder": other})
    assert str(encoder) in repr(refused.value.__cause__)
    assert not (tmp_path / "out" / "model.pt").exists()


def listed(cohort: Path, folder: Path, **first: Any) -> Path:
    """A datalist like the cohort's whose first training patient is changed."""
    document = json.loads((cohort / "datalist.json").read_text())
    for split in ("training", "validation", "test"):
        for item in document[split]:
            item.update({key: str(cohort / item[key]) for key in ("image", "label", "lesion")})
    item = document["training"][0]
    item.update(first)
    document["training"][0] = {key: value for key, value in item.items() if value is not None}
    (folder / "changed.json").write_text(json.dumps(document))
    return folder / "changed.json"


def test_labels_that_are_absent_or_of_another_scan(cohort: Path, tmp_path: Path) -> None:
    """The patient's image and the cause; an absent label is not taken for a healthy patient."""
    lesion = nib.load(next(iter(sorted((cohort / "lesions").iterdir()))))
    nib.save(lesion.slicer[:-4], tmp_path / "short.nii.gz")
    cases = {
        "gives no 'lesion'": None,
        "does not cover": str(tmp_path / "short.nii.gz"),
        "files are missing": str(tmp_path / "absent.nii.gz"),
    }
    for message, path in cases.items():
        with pytest.raises(RuntimeError) as refused:
            run("training", tmp_path, listed(cohort, tmp_path, lesion=path), **LESIONS, pretrained="")
        assert message in repr(refused.value.__cause__)
        assert "phantom_000" in repr(refused.value.__cause__) or "absent.nii.gz" in repr(refused.value.__cause__)
    assert not (tmp_path / "out" / "model.pt").exists()


def test_validation_images_without_a_lesion(cohort: Path, tmp_path: Path) -> None:
    """No AUC can be computed then; training goes on, and a network is written."""
    healthy = "$[i for i in anatomy_ssl.data.load_datalist(@dataset_dir, 'all') if '001' in i['subject']]"
    parser = parsed(tmp_path, cohort, **LESIONS, pretrained="", positive_share=0.0, val_items=healthy, epochs=1)
    parser["classes"] = {"absent": [99]}
    parser.get_parsed_content("train#trainer").run()
    assert (tmp_path / "out" / "model.pt").exists()


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({"val_items": []}, "last"),
        ({"val_interval": 5}, "last"),
        ({"keep": "last"}, "last"),
        ({"val_interval": 2}, "best"),
    ],
    ids=["nothing to validate", "no validation in time", "keep last", "validation"],
)
def test_a_network_is_always_written(
    changes: dict[str, Any], chosen: str, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the best validation, or where there is none the last one."""
    reasons: list[str] = []
    write = SaveNetwork._write
    monkeypatch.setattr(SaveNetwork, "_write", lambda self, reason: (reasons.append(reason), write(self, reason)))
    output = run("training", tmp_path, cohort, **LESIONS, pretrained="", **changes)
    assert (output / "model.pt").exists()
    assert len(reasons) == 1
    assert reasons[0].startswith("the end of training" if chosen == "last" else "auc")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The bundle as it is copied into an application, with an encoder of its own size."""
    bundle = tmp_path / "isimed"
    shutil.copytree(CONFIGS, bundle / "configs")
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "train.json"))
    content = {"model": parser.get_parsed_content("encoder").state_dict(), "provenance": {"crop_size": [24, 24, 24]}}
    (bundle / "models" / "pretrained").mkdir(parents=True)
    torch.save(content, bundle / "models" / "pretrained" / "encoder.pt")
    return bundle


def test_monai_label_trains_again_and_again(
    served: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what its 0.8.5 hands over: two lists of images and labels, a device's name, a loader ahead of the handlers.

    Every run goes on from models/model.pt, which is all that it leaves there, and needs no validation image.
    """
    monkeypatch.chdir(tmp_path)
    images = sorted((cohort / "images").iterdir())
    items = [{"image": str(path), "label": str(cohort / "lesions" / path.name)} for path in images]
    model = served / "models" / "model.pt"
    config = str(served / "configs" / "train.json")
    for validation in (items[4:5], []):
        handlers = ConfigParser.load_config_file(config)["train"]["handlers"]
        assert all(handler.get("_target_") for handler in handlers)
        if model.exists():
            loader = {"_target_": "CheckpointLoader", "load_path": str(model), "load_dict": {"model": "$@network"}}
            handlers.insert(0, {**loader, "strict": False})
        overrides = {"bundle_root": str(served), "device": "cpu", "train#handlers": handlers}
        overrides |= {"train#trainer#max_epochs": 1, "train#dataset#data": items[:2]}
        overrides |= {"validate#dataset#data": validation, "evaluation_crops": 4, "crops_per_volume": 4}
        before = read_state(model) if model.exists() else None
        monai.bundle.run(run_id="run", init_id=None, final_id=None, config_file=config, **overrides)
        after = read_state(model)
        assert {path.name for path in model.parent.iterdir()} == {"model.pt", "pretrained"}
        if before is not None:
            moved = max(float((value - before[name]).abs().max()) for name, value in after.items())
            assert 0 < moved < 0.05


def test_two_processes_train_and_measure_as_one(encoder: Path, cohort: Path, tmp_path: Path) -> None:
    """Equal weights and metrics in both; the metrics are those of one process with the same weights, to rounding."""
    record = {"_target_": "tests.bundles.runs.RecordProcess", "folder": str(tmp_path)}
    record |= {"network": "@network_def", "evaluator": "@validate#evaluator"}
    changes = {**LESIONS, "pretrained": str(encoder), "val_items": THREE_TO_VALIDATE, "epochs": 2}
    changes |= {"layerwise_decay": 0.7, "freeze_epochs": 1, "volumes_per_batch": 1}
    changes |= {"classes": {"lesion": None, "absent": [99]}}
    names, launcher = ("multi_gpu_train.yaml",), ("--nproc_per_node=2", "--standalone")
    process = start("training", tmp_path, cohort, launcher, names=names, **changes, **{"+train#handlers": [record]})
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    first, second = [torch.load(tmp_path / f"process_{i}.pt", weights_only=False) for i in range(2)]
    assert same(first["weights"], second["weights"])
    assert first["metrics"] == second["metrics"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["checkpoint.pt", "model.pt"]
    (tmp_path / "one").mkdir()
    parser = parsed(tmp_path / "one", cohort, **changes)
    parser.get_parsed_content("network_def").load_state_dict(first["weights"])
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    assert 0 <= first["metrics"]["auc"] <= 1
    assert evaluator.state.metrics["auc"] == pytest.approx(first["metrics"]["auc"], abs=1e-6)


@pytest.mark.parametrize("name", ["encoder_densenet121", "encoder_resnet", "encoder_segresnet"])
def test_encoders_of_the_overlays(name: str) -> None:
    """encoder_densenet121.yaml restores pretrain.yaml's crops; the others go on top of it, as on pretrain.yaml."""
    names = dict.fromkeys(["encoder_densenet121", name])
    for base in ("train.json", "inference.json"):
        parser, pretraining = ConfigParser(), ConfigParser()
        parser.read_config([str(CONFIGS / base), *[str(CONFIGS / f"{n}.yaml") for n in names]])
        overlay = [] if name == "encoder_densenet121" else [str(CONFIGS / f"{name}.yaml")]
        pretraining.read_config([str(CONFIGS / "pretrain.yaml"), *overlay])
        if base == "train.json":
            parser["pretrained"] = None
        network = parser.get_parsed_content("network_def").eval()
        own = pretraining.get_parsed_content("encoder").state_dict()
        assert {k: v.shape for k, v in network.encoder.state_dict().items()} == {k: v.shape for k, v in own.items()}
        for key in ("crop_size", "crop_spacing", "embedding_size"):
            assert parser.get_parsed_content(key) == pretraining.get_parsed_content(key)
        with torch.no_grad():
            assert network(torch.rand(2, 1, *parser.get_parsed_content("crop_size"))).shape == (2, 1)
