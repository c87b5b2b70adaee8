"""Checkpoints that the methods' authors released, as encoder files of ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DenseNet121
from torch import nn

from anatomy_ssl.weights.files import file_hash, read_state, some_of
from anatomy_ssl.weights.record import library_versions, save_encoder

__all__ = ["import_released"]

State = Mapping[str, torch.Tensor]
ISIMED_HEADS = ("linear_dist.", "linear_bt.", "reg.")
ISIMED_NETWORK: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 1024}


def import_released(source: str | os.PathLike[str], output: str | os.PathLike[str], method: str) -> Path:
    """Write an encoder file from a checkpoint that a method's authors released; users bring the file.

    Args:
        source: for "isimed": a state dict of MONAI's `DenseNet121(spatial_dims=3, in_channels=1, out_channels=1024)`,
            or the same under `backbone.` beside heads (`linear_dist`, `linear_bt`, `reg`), which are left out;
            `module.` may stand before the names.
        output: file to write, atomically; see `save_encoder`. Its names are DenseNet121's.
        method: whose checkpoint it is: isimed.

    Returns:
        `output` as a path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the method is none of these, the file cannot be read (files with pickled objects are refused), or
            a tensor is missing, unknown or of another shape.
    """
    if method not in LAYOUTS:
        raise ValueError(f"no released checkpoints of {method!r} can be imported; choose {', '.join(LAYOUTS)}")
    state, facts = LAYOUTS[method](read_state(source), source)
    origin = {"released_by": "the authors", "source": Path(source).name, "source_sha256": file_hash(source)}
    return save_encoder(state, {"method": method, **origin, **facts, "imported_with": library_versions()}, output)


def _isimed(state: State, source: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """DenseNet121 alone, or under `backbone.` beside heads."""
    encoder, heads = dict(state), []
    if any(name.startswith("backbone.") for name in state):
        heads = [name for name in state if name.startswith(ISIMED_HEADS)]
        encoder = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if name not in heads}
    with torch.device("meta"):  # names and shapes are enough
        network = DenseNet121(**ISIMED_NETWORK)
    _check(encoder, network, source)
    text = f"DenseNet121({', '.join(f'{name}={value}' for name, value in ISIMED_NETWORK.items())})"
    return encoder, {"network": text, "channels": ISIMED_NETWORK["in_channels"], "left_out": heads}


def _check(state: State, network: nn.Module, source: str | os.PathLike[str]) -> None:
    """Refuse a file whose names and shapes are not exactly the network's."""
    own = network.state_dict()
    shared = [name for name in own if name in state]
    kinds = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [name for name in shared if state[name].shape != own[name].shape],
    }
    wrong = [f"{len(names)} {kind} ({some_of(names)})" for kind, names in kinds.items() if names]
    if wrong:
        raise ValueError(
            f"{source} is no {type(network).__name__} as the authors released it: {'; '.join(wrong)}; for other files "
            "use anatomy_ssl.weights.pretrained in a config"
        )


LAYOUTS: dict[str, Callable[[State, str | os.PathLike[str]], tuple[dict[str, torch.Tensor], dict[str, Any]]]] = {
    "isimed": _isimed
}
