"""The authors' checkpoints become encoder files with the same features; anything else is refused."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DenseNet121

from anatomy_ssl.weights import import_released, inspect, load_pretrained
from tests.weights.networks import randomised, saved

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """In the place of the authors' network."""
    return randomised(DenseNet121(spatial_dims=3, in_channels=1, out_channels=1024))


def beside(heads: dict[str, int]) -> Callable[[State], State]:
    """The network under `backbone.` beside linear heads."""

    def layout(state: State) -> State:
        linear = {
            f"{name}.{kind}": torch.zeros(size, 1024)[:, slice(None) if kind == "weight" else 0]
            for name, size in heads.items()
            for kind in ("weight", "bias")
        }
        return {**{f"backbone.{name}": tensor for name, tensor in state.items()}, **linear}

    return layout


LAYOUTS: dict[str, tuple[Callable[[State], Any], list[str]]] = {
    "plain": (dict, []),
    "two heads": (
        beside({"linear_dist": 512, "linear_bt": 2048}),
        ["linear_dist.weight", "linear_dist.bias", "linear_bt.weight", "linear_bt.bias"],
    ),
    "regression": (beside({"reg": 3}), ["reg.weight", "reg.bias"]),
    "parallel": (lambda s: {f"module.{name}": tensor for name, tensor in beside({"reg": 3})(s).items()}, None),
    "backbone alone": (beside({}), []),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_are_the_authors(layout: str, network: torch.nn.Module, tmp_path: Path) -> None:
    stored, heads = LAYOUTS[layout]
    source = saved(stored(network.state_dict()), tmp_path / "densenet_EPOCH049.pt")
    path = import_released(source, tmp_path / "encoder.pt", "isimed")
    ours = DenseNet121(spatial_dims=3, in_channels=1, out_channels=1024).eval()
    assert load_pretrained(ours, path, minimum_share=1.0).share == 1
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), network(x), atol=1e-5, rtol=1e-5)
    record = inspect(path).provenance
    assert (record["method"], record["source"]) == ("isimed", "densenet_EPOCH049.pt")
    assert record["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert heads is None or record["left_out"] == heads


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


WRONG: dict[str, tuple[Callable[[State], Any], str]] = {
    "a tensor is missing": (without("features.conv0.weight"), r"1 missing \(features\.conv0\.weight\)"),
    "a counter is missing": (without("features.norm0.num_batches_tracked"), "1 missing"),
    "something else beside": (lambda s: {**s, "decoder.weight": torch.zeros(1)}, r"1 unknown \(decoder\.weight\)"),
    "an unknown head": (beside({"cls": 2}), r"2 unknown \(cls\.weight, cls\.bias\)"),
    "heads without backbone": (lambda s: {**s, "reg.weight": torch.zeros(3, 1024)}, "1 unknown"),
    "other outputs": (
        lambda s: {**s, "class_layers.out.bias": torch.zeros(2)},
        r"1 of another shape \(class_layers\.out\.bias\)",
    ),
    "other nesting": (lambda s: {f"encoder.{k}": v for k, v in s.items()}, "missing.*unknown"),
    "objects": (lambda s: {"model": s, "args": argparse.Namespace(lr=1)}, r"argparse\.Namespace.*torch\.save\(model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_layouts_are_refused(case: str, network: torch.nn.Module, tmp_path: Path) -> None:
    stored, message = WRONG[case]
    source = saved(stored(network.state_dict()), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message) as error:
        import_released(source, tmp_path / "encoder.pt", "isimed")
    assert str(source) in str(error.value)
    assert not (tmp_path / "encoder.pt").exists()


def test_methods_that_are_not_supported_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'moco' can be imported; choose isimed"):
        import_released(tmp_path / "w.pt", tmp_path / "encoder.pt", "moco")
