"""A sound bundle passes; every defect is named, with its file and key, and all of them at once."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anatomy_ssl.zoo import BundleError, find_problems, verify_bundle
from anatomy_ssl.zoo import network as checks
from tests.zoo.conftest import TENSOR, TRAIN, network

PATH = "$torch.load('/elsewhere/model.pt')"
CONFIG_DEFECTS: list[tuple[str, str, tuple[Any, ...], str]] = [
    *[
        ("metadata", key, (), f"configs/metadata.json, {key}: is missing")
        for key in ("schema", "monai_version", "required_packages_version", "task", "authors", "copyright")
    ],
    ("metadata", "task", ("",), "configs/metadata.json, task: is missing or empty"),
    ("metadata", "authors", (3,), "configs/metadata.json, authors: must be a text"),
    (
        "metadata",
        "schema",
        ("https://example.org/old.json",),
        "metadata.json, schema: must be the address of meta_schema",
    ),
    ("metadata", "numpy_version", ("new",), "configs/metadata.json, numpy_version: new is no version"),
    ("metadata", "changelog", ({"0.1.0": "first"},), "metadata.json, changelog: lacks the version 0.2.0"),
    ("metadata", "version", ("0.1.0",), "metadata.json, version: 0.1.0 is older than 0.2.0 of the changelog"),
    ("metadata", "changelog#0.10.0", ("",), "metadata.json, version: 0.2.0 is older than 0.10.0"),
    ("metadata", "supported_apps", ({},), "configs/metadata.json, supported_apps: "),
    ("metadata", "required_packages_version#my package", ("1",), "required_packages_version#my package: pip cannot"),
    ("metadata", "required_packages_version#numpy", (">=1",), "required_packages_version#numpy: pip cannot install"),
    ("metadata", "network_data_format#inputs#image#dtype", (), "network_data_format#inputs#image#dtype: is missing"),
    (
        "metadata",
        "network_data_format#inputs#image#dtype",
        ("half-ish",),
        "inputs#image#dtype: torch has no 'half-ish'",
    ),
    ("metadata", "network_data_format#outputs#pred#num_channels", (True,), "#pred#num_channels: must be an integer"),
    ("metadata", "network_data_format#outputs#pred#value_range", (["a"],), "#pred#value_range: must hold numbers"),
    ("metadata", "network_data_format#outputs", ({"mask": TENSOR},), "outputs: the first entry must be 'pred'"),
    *[
        ("train", key, (), f"configs/train.json, {key}: is missing")
        for key in ("dataset_dir", "training", "val_interval")
    ],
    ("train", "train#inferer", (), "configs/train.json, train#inferer: is missing"),
    ("train", "train#trainer#max_epochs", (), "configs/train.json, train#trainer#max_epochs: is missing"),
    ("train", "train#dataset#data", (), "configs/train.json, train#dataset#data: is missing"),
    ("train", "validate#dataset", (), "configs/train.json, validate#dataset: is missing"),
    ("train", "train#handlers", ("$[]",), "configs/train.json, train#handlers: must be a list"),
    ("train", "train#trainer#train_handlers", ([],), "train#trainer#train_handlers: must refer to @train#handlers"),
    ("train", "train#dataset#transform", ({"_target_": "Identity"},), "must refer to @train#preprocessing"),
    (
        "train",
        "train#handlers",
        ([{"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": 1}],),
        "configs/train.json, train#handlers#0#interval: must refer to @val_interval",
    ),
    ("inference", "evaluator", (), "configs/inference.json, evaluator: is missing"),
    ("inference", "run", (), "configs/inference.json, run: is missing"),
    (
        "inference",
        "dataset_dir",
        ("%train.json#dataset_dir",),
        "inference.json, dataset_dir: %train.json#dataset_dir reads",
    ),
    (
        "train",
        "dataset_dir",
        ("/somewhere/data",),
        "configs/train.json, dataset_dir: /somewhere/data is an absolute path",
    ),
    ("train", "dataset_dir", (r"C:\data",), r"configs/train.json, dataset_dir: C:\data is an absolute path"),
    ("train", "run", (["$@device", PATH],), f"configs/train.json, run#1: {PATH} is an absolute path"),
    (
        "train",
        "dataset_dir",
        ("$__import__('os').environ['DATA']",),
        "train.json, dataset_dir: $__import__('os').environ",
    ),
]


def one_problem(bundle: Path, text: str) -> None:
    """Exactly one problem, that one, with a remedy."""
    (problem,) = find_problems(bundle)
    assert text in problem
    assert ";" in problem


def test_a_sound_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes from any folder, by a relative path too; folder, logging and random numbers stay as they were."""
    monkeypatch.chdir(bundle.parent)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    before = sorted(bundle.rglob("*"))
    assert find_problems("tiny") == []
    verify_bundle(bundle)
    assert torch.equal(torch.rand(1), expected)
    assert Path.cwd() == bundle.parent
    assert logging.root.manager.disable == 0
    assert sorted(bundle.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "key", "value", "text"), CONFIG_DEFECTS, ids=[f"{d[0]}-{d[3]}" for d in CONFIG_DEFECTS]
)
def test_defects_of_the_configs(
    name: str, key: str, value: tuple[Any, ...], text: str, bundle: Path, edit: Callable[..., None]
) -> None:
    edit(name, key, *value)
    one_problem(bundle, text)


@pytest.mark.parametrize(
    "text",
    [
        "$@bundle_root + '/data'",
        "$f'{@bundle_root}/data'",
        "./data",
        "%dataset_dir",
        "$'a/b'.split('/')",
        "a / b, ~5 mm",
    ],
)
def test_portable_texts(text: str, bundle: Path, edit: Callable[..., None]) -> None:
    """Paths that begin at a key, macros within the file, and a slash are no defects."""
    edit("train", "here", text)
    edit("train", "dataset_dir", "data")
    assert find_problems(bundle) == []


@pytest.mark.parametrize(
    "name", ["LICENSE", "configs/metadata.json", "configs/train.json", "configs/inference.json", "docs/README.md"]
)
@pytest.mark.parametrize("empty", [True, False])
def test_missing_files(name: str, empty: bool, bundle: Path) -> None:
    (bundle / name).unlink()
    if empty:
        (bundle / name).touch()
    one_problem(bundle, f"{name}: the file is {'empty' if empty else 'missing'}")


def test_empty_metadata(bundle: Path) -> None:
    (bundle / "configs" / "metadata.json").write_text("{}")
    assert len(find_problems(bundle)) == 12


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_that_is_no_table(content: str, bundle: Path) -> None:
    (bundle / "configs" / "inference.json").write_text(content)
    one_problem(bundle, "configs/inference.json: ")


def test_files_in_wrong_places(bundle: Path) -> None:
    for name in ("scripts/net.py", "models/other.pt"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).touch()
    assert [problem.split(":")[0] for problem in find_problems(bundle)] == ["scripts/net.py", "models/other.pt"]


@pytest.mark.parametrize("name", ["tiny_v2", "net_voxel", "a b"])
def test_names_that_monai_splits(name: str, bundle: Path) -> None:
    one_problem(bundle.rename(bundle.with_name(name)), f"{name}: ")


WEIGHT_DEFECTS = {
    "nested": (lambda state: {"model": state}, "under the key 'model'"),
    "prefix": (
        lambda state: {f"module.{k}": v for k, v in state.items()},
        "9 missing (0.bias, 0.weight, 1.bias, ...), 9",
    ),
    "missing": (lambda state: {k: v for k, v in state.items() if k != "2.bias"}, "1 missing (2.bias)"),
    "more": (lambda state: {**state, "head.weight": torch.ones(1)}, "1 not in the network (head.weight)"),
    "shape": (lambda state: {**state, "2.bias": torch.ones(3)}, "1 of another shape (2.bias)"),
    "values": (lambda state: {"epoch": 3}, "is no state dict of tensors"),
}


@pytest.mark.parametrize("kind", WEIGHT_DEFECTS)
def test_weights_that_do_not_fill_the_network(kind: str, bundle: Path) -> None:
    """One problem for each network that the weights do not fill; the export is checked all the same."""
    change, text = WEIGHT_DEFECTS[kind]
    torch.save(change(network(0).state_dict()), bundle / "models" / "model.pt")
    problems = find_problems(bundle)
    assert len(problems) == (1 if kind in ("nested", "values") else 2)
    assert all(problem.startswith("models/model.pt: ") and text in problem for problem in problems)


@pytest.mark.parametrize(
    ("change", "cause"),
    [(lambda bias: bias * torch.nan, "NaN or infinite"), (lambda bias: bias.long(), "int64, network float32")],
    ids=["nan", "integer"],
)
def test_weights_that_no_network_can_use(
    change: Callable[[torch.Tensor], torch.Tensor], cause: str, bundle: Path
) -> None:
    state = network(0).state_dict()
    torch.save({**state, "2.bias": change(state["2.bias"])}, bundle / "models" / "model.pt")
    one_problem(bundle, f"models/model.pt: has weights that cannot be used: 2.bias ({cause})")


def test_half_precision_weights(bundle: Path) -> None:
    torch.save({k: v.half() for k, v in network(0).state_dict().items()}, bundle / "models" / "model.pt")
    assert find_problems(bundle) == []


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_a_harmful_or_truncated_file(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is executed; the path in the sentence is the bundle's."""
    monkeypatch.chdir(tmp_path)
    model = bundle / "models" / "model.pt"
    whole = model.read_bytes()
    for content in (pickle.dumps({"0.weight": Harmful()}, protocol=2), whole[: len(whole) // 2]):
        model.write_bytes(content)
        (problem,) = find_problems(bundle)
        assert problem.startswith("models/model.pt ")

    assert not list(tmp_path.rglob("harm"))


@pytest.mark.parametrize(
    ("net", "text"),
    [
        ("$torch.nn.Sequential(@net, torch.nn.AdaptiveMaxPool3d(8, return_indices=True))", "gives a tuple"),
        ("$torch.nn.Sequential(@net, torch.nn.MaxPool3d(2))", "gives the spatial shape [4, 4, 4]"),
        ("$torch.nn.Sequential(@net, torch.nn.MaxPool3d(99))", "fails on the image of network_data_format"),
        ("$torch.nn.Sequential(@net, torch.nn.ConstantPad3d(0, 1), torch.nn.Flatten(0, 1))", "gives the spatial shape"),
        ("$unknown(@net)", "monai.bundle.load cannot build it"),
    ],
)
def test_networks_that_are_not_as_the_metadata_say(
    net: str, text: str, bundle: Path, edit: Callable[..., None]
) -> None:
    edit("inference", "network_def", net)
    problems = [p for p in find_problems(bundle) if not p.startswith("models/model.pt")]
    assert len(problems) == 1
    assert text in problems[0]
    assert problems[0].startswith("configs/inference.json, network_def: ")


def test_channels_of_the_output(bundle: Path, edit: Callable[..., None]) -> None:
    edit("metadata", "network_data_format#outputs#pred#num_channels", 3)
    one_problem(bundle, "output channel number `2` doesn't match: `3`")


def test_sizes_as_expressions(bundle: Path, edit: Callable[..., None]) -> None:
    """The zoo's `*` and `16*n`."""
    for side in ("inputs#image", "outputs#pred"):
        edit("metadata", f"network_data_format#{side}#spatial_shape", ["*", "8*n", 8])
    assert find_problems(bundle) == []


def test_torchscript(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is good enough; neither is a problem."""
    export = checks.ckpt_export

    def only(*modes: bool) -> Callable[..., None]:
        def ckpt_export(*args: Any, use_trace: bool, **options: Any) -> None:
            if use_trace not in modes:
                raise RuntimeError("cannot do it")
            export(*args, use_trace=use_trace, **options)

        return ckpt_export

    monkeypatch.setattr(checks, "ckpt_export", only(True))
    assert find_problems(bundle) == []
    monkeypatch.setattr(checks, "ckpt_export", only())
    one_problem(bundle, "TorchScript export fails, scripted (RuntimeError: cannot do it) and traced")


def test_networks_are_built_outside_of_the_bundle(
    bundle: Path, edit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inference must not read a file relative to the working directory, even where the caller stands in the bundle."""
    monkeypatch.chdir(bundle)
    edit("inference", "network_def", TRAIN["network_def"])
    one_problem(bundle, "configs/inference.json, network_def: monai.bundle.load cannot build it")


def test_all_problems_at_once(bundle: Path, edit: Callable[..., None]) -> None:
    """Files, metadata, ids and weights in one error; as many as there are defects."""
    (bundle / "LICENSE").unlink()
    edit("metadata", "task")
    edit("train", "training")
    edit("inference", "inferer")
    torch.save({"model": network(0).state_dict()}, bundle / "models" / "model.pt")
    with pytest.raises(BundleError) as raised:
        verify_bundle(bundle)
    files = ["LICENSE", "configs/inference.json", "configs/metadata.json", "configs/train.json", "models/model.pt"]
    assert sorted(problem.replace(":", ",").split(",")[0] for problem in raised.value.problems) == files
    assert "tiny has 5 problems:\n- LICENSE: " in str(raised.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        find_problems(tmp_path / "nowhere")


def test_the_command(bundle: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """One line per problem and exit code 2."""
    assert call("zoo", "verify", bundle) == 0
    assert capsys.readouterr().out == f"{bundle} is sound\n"
    (bundle / "LICENSE").unlink()
    (bundle / "docs" / "README.md").unlink()
    assert call("zoo", "verify", bundle) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in lines] == ["LICENSE", "docs/README.md"]


def test_help(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("zoo", "--help") == 0
    assert "verify" in "".join(capsys.readouterr())
    for command, option in {"verify": "BUNDLE", "pack": "--url", "push": "--private"}.items():
        assert call("zoo", command, "--help") == 0
        assert option in "".join(capsys.readouterr())


def test_training_without_validation(bundle: Path, edit: Callable[..., None]) -> None:
    edit("train", "validate")
    edit("train", "val_interval")
    edit("train", "train#handlers", [])
    assert find_problems(bundle) == []
