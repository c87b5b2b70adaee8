"""What MONAI, its model zoo and MONAI Label ask of a bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle import run as bundle_run
from PIL import Image

from tests.bundles import test_alice_finetune, test_peac
from tests.bundles.runs import CONFIGS, TINY

BUNDLES = {"isimed": CONFIGS, "peac": test_peac.CONFIGS, "alice": test_alice_finetune.CONFIGS}
every_bundle = pytest.mark.parametrize("bundle", BUNDLES)


def raw(name: str, bundle: str = "isimed") -> dict[str, Any]:
    """A config file as it is written."""
    return ConfigParser.load_config_file(BUNDLES[bundle] / name)


@pytest.mark.parametrize(
    "name", ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/logging.conf"]
)
@every_bundle
def test_required_files(bundle: str, name: str) -> None:
    path = BUNDLES[bundle].parent / name
    assert path.stat().st_size > 100
    assert "/work" not in path.read_text(encoding="utf-8")


@every_bundle
def test_bundle_holds_no_python(bundle: str) -> None:
    assert not list(BUNDLES[bundle].parent.rglob("*.py"))


@every_bundle
def test_metadata(bundle: str) -> None:
    """The zoo's schema (meta_schema_20240725) asks for these; supported_apps is left out on purpose."""
    metadata = raw("metadata.json", bundle)
    text = {
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "task",
        "description",
        "authors",
        "copyright",
    }
    assert all(isinstance(metadata[key], str) and metadata[key] for key in text)
    assert metadata["schema"].endswith("meta_schema_20240725.json")
    assert metadata["version"] in metadata["changelog"]
    assert metadata["name"]
    assert "supported_apps" not in metadata
    assert all(isinstance(v, str) and v[0].isdigit() for v in metadata["required_packages_version"].values())
    for tensors in metadata["network_data_format"].values():
        for tensor in tensors.values():
            keys = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
            assert keys | {"channel_def"} <= tensor.keys()
    assert list(metadata["network_data_format"]["inputs"]) == ["image"]
    assert list(metadata["network_data_format"]["outputs"]) == ["pred"]


@every_bundle
def test_network_is_that_of_the_metadata(bundle: str) -> None:
    """The zoo builds `network_def` anywhere, feeds the input's shape, wants one tensor, and exports TorchScript."""
    data_format = raw("metadata.json", bundle)["network_data_format"]
    parser = ConfigParser(raw("inference.json", bundle))
    image = data_format["inputs"]["image"]
    network = parser.get_parsed_content("network_def").eval()
    crops = torch.rand(1, image["num_channels"], *image["spatial_shape"])
    # MONAI's Swin blocks cannot be scripted; the zoo's export traces them then
    export = torch.jit.script if bundle == "isimed" else lambda module: torch.jit.trace(module, torch.rand_like(crops))
    with torch.no_grad():
        output = network(crops)
        exported = export(network)(crops)
    assert isinstance(output, torch.Tensor)
    assert output.shape[:2] == (1, data_format["outputs"]["pred"]["num_channels"])
    assert [*output.shape[2:]] == data_format["outputs"]["pred"]["spatial_shape"]
    assert torch.equal(output, exported)


def test_labels_that_monai_label_offers() -> None:
    """Taken from the output's channels: a mask's values or a classifier's outputs, by their places in both configs."""
    for bundle in ("isimed", "alice"):
        channels = raw("metadata.json", bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
        names = enumerate(raw("train.json", bundle)["classes"], 1)
        assert channels == {"0": "background", **{str(i): name for i, name in names}}
    channels = raw("metadata.json", "peac")["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channels == {str(i): name for i, name in enumerate(raw("train.json", "peac")["labels"])}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("pretrain.yaml", "train"), ("train.json", "train"), ("inference.json", "inference"), ("embed.yaml", "inference")],
)
def test_properties(name: str, kind: str, cohort: Path, tmp_path: Path) -> None:
    """MONAI finds every required property, and the optional ones under their names."""
    changes = dict(TINY) if kind == "train" else {"encoder": TINY["encoder"], "crop_size": [8, 8, 8], "checkpoint": ""}
    changes |= {"embedding_size": 8, "dataset_dir": str(cohort), "output_dir": str(tmp_path)}
    if name == "train.json":
        changes["pretrained"] = ""
    check_properties(CONFIGS / name, kind, changes)


@pytest.mark.parametrize("name", ["pretrain.yaml", "train.json", "inference.json"])
def test_properties_of_peac(name: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50), dtype=np.uint8))
    for split in ("training", "validation", "test"):
        picture.save(tmp_path / f"{split}.png")
    labels = dict.fromkeys(raw("train.json", "peac")["labels"], 0)
    items = {s: [{"image": f"{s}.png", "subject": s, "labels": labels}] for s in ("training", "validation", "test")}
    (tmp_path / "datalist.json").write_text(json.dumps(items))
    changes: dict[str, Any] = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path), "device": "cpu"}
    changes["encoder"] = test_peac.TINY["encoder"]
    if name == "pretrain.yaml":
        changes = {**test_peac.TINY, **changes, "device": torch.device("cpu")}
    else:
        changes |= {"image_size": [40, 40], "crop_size": [32, 32]}
        changes |= (
            {"pretrained": "", "tensorboard": False, "mlflow": False} if name == "train.json" else {"checkpoint": ""}
        )
    check_properties(test_peac.CONFIGS / name, "inference" if name == "inference.json" else "train", changes)


@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_properties_of_alice(name: str, cohort: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"dataset_dir": str(cohort), "output_dir": str(tmp_path), "device": "cpu"}
    if name == "train.json":
        changes |= test_alice_finetune.QUICK
    else:
        changes["checkpoint"] = ""
    kind = "inference" if name == "inference.json" else "train"
    check_properties(test_alice_finetune.CONFIGS / name, kind, changes)


def check_properties(path: Path, kind: str, changes: dict[str, Any]) -> None:
    workflow = ConfigWorkflow(str(path), workflow_type=kind, logging_file=False, **changes)
    workflow.initialize()
    assert workflow.check_properties() == []


@every_bundle
@pytest.mark.parametrize("name", ["pretrain.yaml", "train.json"])
def test_ids_of_training_that_other_programs_look_for(name: str, bundle: str) -> None:
    """The zoo's verification and MONAI Label read them by these names; expressions would hide them."""
    train = ConfigParser(raw(name, bundle))
    scans = "scans" if (bundle, name) == ("alice", "pretrain.yaml") else "dataset"  # there, the dataset is of pairs
    zoo = [f"train#{scans}#data", "train#handlers", "train#inferer", "validate#evaluator", "validate#handlers"]
    zoo += [f"validate#{scans}#data", "validate#key_metric", "val_interval", "output_dir", "run", "training"]
    assert [key for key in zoo if key not in train] == []
    assert isinstance(train["train#handlers"], list)
    (handler,) = [h for h in train["train#handlers"] if h["_target_"] == "ValidationHandler"]
    assert (handler["validator"], handler["interval"]) == ("@validate#evaluator", "@val_interval")


def test_ids_of_inference_that_other_programs_look_for() -> None:
    for name, bundle in (*(("inference.json", bundle) for bundle in BUNDLES), ("embed.yaml", "isimed")):
        config = ConfigParser(raw(name, bundle))
        assert [key for key in ("dataset#data", "handlers", "output_dir", "run", "inferer") if key not in config] == []
    assert "embedding" in config
    assert all("postprocessing" in raw("inference.json", bundle) for bundle in BUNDLES)
    for name in ("evaluate.yaml", "probe.yaml", "multi_gpu_pretrain.yaml", "multi_gpu_train.yaml"):
        assert "run" in raw(name)


@every_bundle
def test_monai_label_may_give_a_device_by_name(bundle: str) -> None:
    """It writes "cuda" over `device`, which has no `type`."""
    for name in ("train.json", "inference.json"):
        assert "@device." not in (BUNDLES[bundle] / name).read_text()


@every_bundle
def test_self_contained(bundle: str) -> None:
    """No macros on other files: MONAI Label and load() read the JSON files alone, from any folder."""
    for name in ("train.json", "inference.json", "pretrain.yaml", *(["embed.yaml"] if bundle == "isimed" else [])):
        assert not re.search(r"%[^'\"]*\.(json|yaml|yml)", (BUNDLES[bundle] / name).read_text()), name


def test_what_peac_repeats_is_the_same() -> None:
    """Preparation and network are written in three files, and a classifier has to see what it was trained on."""
    pretrain, train, inference = (raw(n, "peac") for n in ("pretrain.yaml", "train.json", "inference.json"))
    small = raw("encoder_small.yaml", "peac")
    for key in ("spatial_dims", "mean", "std", "intensity", "on_bad_image"):
        assert pretrain[key] == train[key] == inference[key], key
    assert small["encoder"] == train["encoder"] == inference["encoder"]
    for key in ("labels", "exclusive", "image_size", "crop_size", "mirror", "ten_crop", "cell_size"):
        assert train[key] == inference[key], key
    assert train["recipe"] == inference["network"]["recipe"]
    image = raw("metadata.json", "peac")["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == train["crop_size"]
    assert {k: v for k, v in train["classifier"].items() if k != "dropout"} == inference["network_def"]
    *steps, tensors = train["preparation"]
    *inferred, with_metadata = inference["preprocessing"]["transforms"]
    assert steps == inferred
    assert {**tensors, "track_meta": True} == with_metadata
    # pre-training resizes to its own size, selects entries, and normalises in prepare_batch
    shared = [step for step in pretrain["preprocessing"] if "SelectItemsd" not in str(step)]
    shared = shared[: shared.index("@intensity") + 1]
    assert steps[: len(shared)] == shared
    crops = {k: v for k, v in inference["inferer"].items() if k not in ("_target_", "features", "head")}
    assert crops == {k: v for k, v in train["test"]["inferer"].items() if k != "_target_"}


def steps_on_the_image(steps: list[Any]) -> list[Any]:
    """What changes the image among transforms: without label maps, points, and the choice of entries to go on with."""
    names = ("AnatomicalOrigind", "SelectItemsd", "ForegroundPointsd", "CheckCoveraged", "Compose")
    labels = ("label", "@label_key")
    rest = [s for s in steps if isinstance(s, str) or not (s["_target_"].endswith(names) or s["keys"] in labels)]
    # training keeps the files' integers and looks intensities up: the same, see tests/transforms/test_lookup.py
    found = [s.get("intensity", s) if isinstance(s, dict) else s for s in rest]
    plain = [s if isinstance(s, str) else {**s, "keys": "image"} for s in found]
    return [s if isinstance(s, str) else {k: v for k, v in s.items() if k != "keep_integers"} for s in plain]


def test_what_configs_repeat_is_the_same() -> None:
    """The encoder, its input and the deterministic preparation are written four times."""
    train, inference, embed, pretrain = (
        raw(n) for n in ("train.json", "inference.json", "embed.yaml", "pretrain.yaml")
    )
    shared = ["spatial_dims", "channels", "intensity", "on_bad_image"]
    encoders = ["crop_size", "crop_spacing", "embedding_size", "norm", "encoder"]
    for key in shared:
        assert train[key] == inference[key] == embed[key] == pretrain[key], key
    for key in encoders:
        assert train[key] == inference[key] == raw("encoder_small.yaml")[key], key
        assert embed[key] == pretrain[key] == raw("encoder_densenet121.yaml")[key], key
    assert set(raw("encoder_small.yaml")) == set(raw("encoder_densenet121.yaml")) == set(encoders)
    steps = steps_on_the_image(pretrain["preprocessing"])
    assert len(steps) == 3
    for other in (train["preparation"], inference["preprocessing"]["transforms"], embed["preprocessing"]["transforms"]):
        assert steps_on_the_image(other) == steps
    assert train["foreground_threshold"] == embed["foreground_threshold"] == pretrain["foreground_threshold"]
    # crops are resampled one by one in training, and a volume at once for a map
    assert inference["inferer"]["spacing"] == embed["inferer"]["spacing"] == "@crop_spacing"
    assert train["classes"] == inference["classes"]
    head = {k: v for k, v in train["classifier"].items() if k != "dropout"}
    assert head == inference["network_def"]
    assert {**train["fixed_crops"], "num_samples": "@crops_per_volume"} == train["crops"]


def test_processes_are_started_alike() -> None:
    """The two overlays for several processes differ in what they lie on, not in what they do."""
    pretrain, train = (
        {k: v for k, v in raw(name).items() if k != "+imports"}
        for name in ("multi_gpu_pretrain.yaml", "multi_gpu_train.yaml")
    )
    # the layout of convolutions can be chosen in pre-training
    module = pretrain["network"]["module"].replace("@device, memory_format=@memory_format", "@device")
    assert {**pretrain, "network": {**pretrain["network"], "module": module}} == train


def test_every_overlay_says_what_it_is() -> None:
    """A head that a reader understands, and no key that neither the recipe nor the overlay itself uses."""
    known = ConfigParser(raw("pretrain.yaml"))
    for file in sorted(CONFIGS.glob("*.yaml")):
        text = file.read_text()
        assert text.startswith("# "), file.name
        if file.name.startswith(("variant_", "encoder_", "group_norm", "demo")):
            unknown = [k for k in raw(file.name) if k.lstrip("+") not in known and f"@{k.lstrip('+')}" not in text]
            assert unknown == [], file.name


def test_null_on_the_command_line_is_an_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI drops a plain None; the form that pretrain.yaml names replaces a value by null."""
    seen: list[Any] = []
    monkeypatch.setattr(ConfigWorkflow, "run", lambda self: seen.append(self.parser.get_parsed_content("crop_spacing")))
    files = [str(CONFIGS / "pretrain.yaml"), str(CONFIGS / "encoder_small.yaml")]
    for given in (None, "$None"):
        bundle_run("training", config_file=files, crop_spacing=given, initialize=[])
    assert seen == [[4.0, 4.0, 4.0], None]
