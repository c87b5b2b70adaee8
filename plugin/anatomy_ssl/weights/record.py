"""Encoders as files: the weights under their own names beside a record of where they come from."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Engine

import anatomy_ssl
from anatomy_ssl.data.atomic import atomic_save
from anatomy_ssl.weights.files import canonical, file_hash, read_weights, some_of

__all__ = ["WeightsSummary", "export_encoder", "inspect", "library_versions", "save_encoder", "training_record"]


def save_encoder(
    state: Mapping[str, torch.Tensor], provenance: Mapping[str, Any], path: str | os.PathLike[str]
) -> Path:
    """Write weights and where they come from: `{"model": state, "provenance": provenance}`, readable weights_only.

    Args:
        state: name -> tensor, under the names that a network has for them.
        provenance: method, fingerprints, versions, seed, epochs and the like; JSON types only.
        path: file to write, atomically.

    Returns:
        `path` as a path.

    Raises:
        ValueError: if there is nothing to write, or provenance is not JSON.
    """
    if not state:
        raise ValueError(f"there are no weights to write to {path}")
    record = json.loads(canonical(dict(provenance)))
    atomic_save({"model": {name: _alone(tensor) for name, tensor in state.items()}, "provenance": record}, path)
    return Path(path)


def training_record(provenance: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """What a run's files say of it: the given record, whole epochs, iterations, and versions of the libraries.

    Args:
        provenance: plain values that say where the weights come from (method, data, seed, ...).
        engine: the trainer.
    """
    iterations, length = engine.state.iteration, engine.state.epoch_length
    epochs = iterations // length if length else engine.state.epoch
    return {**provenance, "epochs": epochs, "iterations": iterations, "versions": library_versions()}


def library_versions() -> dict[str, str]:
    """Versions of this package, MONAI and torch."""
    return {module.__name__: str(module.__version__) for module in (anatomy_ssl, monai, torch)}


def export_encoder(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    part: str = "encoder",
    half: bool = False,
    allow_unknown: bool = False,
) -> Path:
    """Write a checkpoint's encoder alone, under its own names, with the record that the training left there.

    Args:
        checkpoint: a training checkpoint, or any file with a state dict, such as a fine-tuned `model.pt`.
        output: file to write, atomically; see `save_encoder`.
        part: what to export: `encoder.backbone` gives a `PooledEncoder`'s backbone under MONAI's own names, "" all.
        half: store floating point numbers in half precision; loading brings them back to the network's.
        allow_unknown: export a file that has no record, whose method is then "unknown".

    Returns:
        `output` as a path.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint cannot be read, has nothing under `part`, has no record and `allow_unknown` is
            false, has values that half precision cannot hold, or is `output` itself.
    """
    if Path(checkpoint).resolve() == Path(output).resolve():
        raise ValueError(f"{output} is the checkpoint itself, whose training state would be lost: give another output")
    state, record = read_weights(checkpoint)
    prefix = f"{part}." if part else ""
    encoder = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not encoder:
        raise ValueError(f"{checkpoint} has nothing under {part!r}; its names are {some_of(list(state))}: give --part")
    if not record and not allow_unknown:
        raise ValueError(
            f"{checkpoint} does not say how it was trained (no provenance): give --allow_unknown to export it still"
        )
    record = record or {"method": "unknown", "source": Path(checkpoint).name, "source_sha256": file_hash(checkpoint)}
    if half:
        encoder = {name: _half(name, tensor) for name, tensor in encoder.items()}
    return save_encoder(encoder, record, output)


@dataclass(frozen=True)
class WeightsSummary:
    """What a file of weights holds; `str()` gives lines to read.

    Attributes:
        path: the file.
        size: bytes.
        sha256: of the file, 64 hexadecimal digits.
        provenance: its record, empty without one.
        names: of its tensors, in the file's order.
        values: numbers in all its tensors.
        dtypes: dtype -> number of tensors.
    """

    path: str
    size: int
    sha256: str
    provenance: dict[str, Any]
    names: list[str]
    values: int
    dtypes: dict[str, int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.path}: {self.size / 1e6:.2f} MB, sha256 {self.sha256}",
            f"tensors: {len(self.names)} ({kinds}), {self.values:,} values",
            f"first: {self.names[0]}, last: {self.names[-1]}",
            "provenance:" if self.provenance else "provenance: no record",
        ]
        return "\n".join([*lines, *_lines(self.provenance)])


def inspect(path: str | os.PathLike[str]) -> WeightsSummary:
    """What a file of weights holds: an exported encoder, a checkpoint, or a plain state dict.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of weights, see `read_weights`.
    """
    state, record = read_weights(path)
    return WeightsSummary(
        path=str(path),
        size=Path(path).stat().st_size,
        sha256=file_hash(path),
        provenance=record,
        names=list(state),
        values=sum(tensor.numel() for tensor in state.values()),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())),
    )


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Off its device and graph; torch would write all that a view is a part of."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """In half precision, if it is a floating point tensor."""
    if not tensor.is_floating_point():
        return tensor
    small = tensor.half()
    if not torch.equal(small.isfinite(), tensor.isfinite()):
        raise ValueError(f"{name} has values beyond 65504, which half precision cannot hold: export without --half")
    return small


def _lines(record: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """A record as indented `name: value` lines."""
    lines = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines
