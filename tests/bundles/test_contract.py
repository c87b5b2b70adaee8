"""What MONAI, its model zoo and MONAI Label ask of a bundle, as far as a pre-training bundle has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle import run as bundle_run

from tests.bundles.runs import CONFIGS, TINY

BUNDLE = CONFIGS.parent
METADATA = json.loads((CONFIGS / "metadata.json").read_text())


def raw(name: str) -> dict[str, Any]:
    """A config file as it is written."""
    return ConfigParser.load_config_file(CONFIGS / name)


@pytest.mark.parametrize(
    "name", ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/logging.conf"]
)
def test_required_files(name: str) -> None:
    assert (BUNDLE / name).stat().st_size > 100
    assert "/work" not in (BUNDLE / name).read_text()


def test_bundle_holds_no_python() -> None:
    assert not list(BUNDLE.rglob("*.py"))


def test_metadata() -> None:
    """The zoo's schema (meta_schema_20240725) asks for these; supported_apps is left out on purpose."""
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
    assert all(isinstance(METADATA[key], str) and METADATA[key] for key in text)
    assert METADATA["schema"].endswith("meta_schema_20240725.json")
    assert METADATA["version"] in METADATA["changelog"]
    assert METADATA["name"]
    assert "supported_apps" not in METADATA
    assert all(isinstance(v, str) and v[0].isdigit() for v in METADATA["required_packages_version"].values())
    for tensors in METADATA["network_data_format"].values():
        for tensor in tensors.values():
            keys = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
            assert keys | {"channel_def"} <= tensor.keys()
    assert list(METADATA["network_data_format"]["inputs"]) == ["image"]
    assert list(METADATA["network_data_format"]["outputs"]) == ["pred"]


def test_network_is_that_of_the_metadata() -> None:
    """The zoo builds `network_def`, feeds the input's shape and wants one tensor."""
    parser = ConfigParser(raw("inference.json"))
    parser["checkpoint"] = ""
    image = METADATA["network_data_format"]["inputs"]["image"]
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        output = network(torch.zeros(1, image["num_channels"], *image["spatial_shape"]))
    assert isinstance(output, torch.Tensor)
    assert output.shape == (1, METADATA["network_data_format"]["outputs"]["pred"]["num_channels"])


@pytest.mark.parametrize(("name", "kind"), [("pretrain.yaml", "train"), ("inference.json", "inference")])
def test_properties(name: str, kind: str, cohort: Path, tmp_path: Path) -> None:
    """MONAI finds every required property, and the optional ones under their names."""
    changes = TINY if kind == "train" else {"encoder": TINY["encoder"], "crop_size": [8, 8, 8], "checkpoint": ""}
    changes = {**changes, "dataset_dir": str(cohort), "output_dir": str(tmp_path)}
    workflow = ConfigWorkflow(str(CONFIGS / name), workflow_type=kind, logging_file=False, **changes)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_ids_that_other_programs_look_for() -> None:
    """The zoo's verification reads them by these names; expressions would hide them."""
    train, inference = ConfigParser(raw("pretrain.yaml")), ConfigParser(raw("inference.json"))
    zoo = ["train#dataset#data", "train#handlers", "train#inferer", "validate#evaluator", "validate#handlers"]
    zoo += ["validate#dataset#data", "validate#key_metric", "val_interval", "output_dir", "run", "training"]
    assert [name for name in zoo if name not in train] == []
    assert [name for name in ("dataset#data", "handlers", "output_dir", "run") if name not in inference] == []
    assert isinstance(train["train#handlers"], list)
    (handler,) = [h for h in train["train#handlers"] if h["_target_"] == "ValidationHandler"]
    assert (handler["validator"], handler["interval"]) == ("@validate#evaluator", "@val_interval")
    for name in ("evaluate.yaml", "probe.yaml", "multi_gpu_pretrain.yaml"):
        assert "run" in raw(name)


def test_inference_is_self_contained() -> None:
    """JSON without macros on other files: MONAI Label and load() read it alone, from any folder."""
    assert '"%' not in (CONFIGS / "inference.json").read_text()


def test_inference_repeats_what_pretraining_does() -> None:
    """The encoder, its input and the deterministic preparation are written twice, and have to be the same."""
    train, inference = raw("pretrain.yaml"), raw("inference.json")
    shared = ["spatial_dims", "channels", "crop_size", "crop_spacing", "embedding_size", "norm", "encoder", "intensity"]
    for key in (*shared, "foreground_threshold", "on_bad_image"):
        assert train[key] == inference[key], key

    def image_steps(steps: list[Any]) -> list[Any]:
        """What changes the image: without origins, label maps, and the choice of entries to go on with."""
        names = ("AnatomicalOrigind", "SelectItemsd", "Spacingd")
        rest = [s for s in steps if isinstance(s, str) or not (s["_target_"].endswith(names) or s["keys"] == "label")]
        return [s if isinstance(s, str) else {**s, "keys": "image"} for s in rest]

    repeated = inference["preprocessing"]["transforms"]
    assert image_steps(train["preprocessing"]) == image_steps(repeated)
    # crops are resampled one by one in training, and a volume at once for a map
    assert [step["pixdim"] for step in repeated if "Spacingd" in str(step)] == ["@crop_spacing"]


def test_every_overlay_says_what_it_is() -> None:
    """A head that a reader understands, and no key that the recipe does not know."""
    known = ConfigParser(raw("pretrain.yaml"))
    for file in sorted(CONFIGS.glob("*.yaml")):
        assert file.read_text().startswith("# "), file.name
        if file.name.startswith(("variant_", "encoder_", "group_norm", "demo")):
            own = {"barlow_weight", "feature_size", "window_size", "lesion_key", "folds"}
            unknown = [key for key in raw(file.name) if key.lstrip("+") not in known and key not in own]
            assert not unknown, file.name


def test_null_on_the_command_line_is_an_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI drops a plain None; the form that pretrain.yaml names replaces a value by null."""
    seen: list[Any] = []
    monkeypatch.setattr(ConfigWorkflow, "run", lambda self: seen.append(self.parser.get_parsed_content("crop_spacing")))
    files = [str(CONFIGS / "pretrain.yaml"), str(CONFIGS / "encoder_small.yaml")]
    for given in (None, "$None"):
        bundle_run("training", config_file=files, crop_spacing=given, initialize=[])
    assert seen == [[4.0, 4.0, 4.0], None]
