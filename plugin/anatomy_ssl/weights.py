"""Weights: export an encoder with its provenance, load one into any network, and refuse what does not fit."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .data.atomic import atomic_save, safe_load

__all__ = ["LoadReport", "check_recipe", "export_encoder", "fingerprint", "load_pretrained", "pretrained", "read_state"]

logger = logging.getLogger(__name__)

STATE_KEYS = ("model", "encoder", "state_dict")  # the last is that of MONAI's published weights
SHOWN = 5  # names per list in reports and errors


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor; names are the network's, those of `unexpected` the file's.

    Attributes:
        path: the file.
        prefix: what the file puts before the network's names, "" for nothing.
        matched: in both with one shape.
        missing: in the network, not in the file.
        unexpected: in the file, not in the network.
        mismatched: in both with different shapes: (name, shape in the file, shape in the network).
    """

    path: str
    prefix: str
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def share(self) -> float:
        """Matched part of the network's tensors, 0 to 1."""
        return len(self.matched) / max(1, len(self.matched) + len(self.missing) + len(self.mismatched))

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        under = f" under {self.prefix!r}" if self.prefix else ""
        lines = [f"{self.path}: {len(self.matched)} of the network's {total} tensors fit{under} ({self.share:.1%})"]
        reshaped = [f"{name} (file {_sizes(there)}, network {_sizes(here)})" for name, there, here in self.mismatched]
        kinds = {"missing": self.missing, "other shape": reshaped, "unused in the file": self.unexpected}
        lines += [f"  {kind}: {len(names)}: {_first(names)}" for kind, names in kinds.items() if names]
        return "\n".join(lines)


def load_pretrained(
    network: nn.Module, path: str | os.PathLike[str], prefix: str | None = None, minimum_share: float = 0.9
) -> LoadReport:
    """Load the tensors of a file that fit a network by name and shape, and log what fitted and what did not.

    Args:
        network: changed in place, unless the call raises. To fill only a part, pass the part (`network.swinViT`).
        path: a training checkpoint (weights under `model`), an exported encoder, or a plain state dict; see
            `read_state`.
        prefix: what the file puts before the network's names (`encoder.`, `encoder.backbone.`); None finds it: the
            one with the most tensors that fit. Where the file's names are instead those of one part of the network,
            they are tried there.
        minimum_share: smallest part of the network's tensors (parameters and buffers, counted) that must fit, 0 to 1.

    Returns:
        What was loaded and what was not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, several prefixes fit equally well, or less than `minimum_share` fits;
            nothing is loaded.
    """
    state, own = read_state(path), network.state_dict()
    prefix, inner = _find_prefix(state, own, path) if prefix is None else (prefix, "")
    source = {inner + name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
    report = _compare(state, own, source, path, prefix)
    if not report.matched or report.share < minimum_share:
        raise ValueError(
            f"{path} fits {report.share:.1%} of {type(network).__name__}, under the minimum of {minimum_share:.1%}: "
            "build the network that the file was made with, give prefix or module, or lower minimum_share\n"
            f"{report}"
        )
    network.load_state_dict({name: state[source[name]] for name in report.matched}, strict=False)
    logger.log(logging.WARNING if report.missing or report.mismatched else logging.INFO, str(report))
    return report


def pretrained(
    network: nn.Module,
    path: str | os.PathLike[str] | None = None,
    module: str = "",
    prefix: str | None = None,
    minimum_share: float = 0.9,
    recipe: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network with weights from a file: for `_target_` around a network in a config.

    The weights are there when the network is built, so that whatever loads later (MONAI Label, `--resume`) has the
    last word.

    Args:
        network: the network to fill.
        path: the file; None or "" leaves the network as it is.
        module: name of the part to fill (`swinViT`, `vit`, `encoder`); "" for the whole network.
        prefix: see `load_pretrained`.
        minimum_share: see `load_pretrained`; counted within `module`.
        recipe: see `check_recipe`; None does not check.

    Returns:
        The same network.

    Raises:
        FileNotFoundError: see `load_pretrained`.
        ValueError: see `load_pretrained` and `check_recipe`, or if the network has no such part.
    """
    if path is None or str(path) == "":
        return network
    if recipe is not None:
        check_recipe(path, recipe)
    try:
        part = network.get_submodule(module)
    except AttributeError as error:
        names = _first([name for name, _ in network.named_children()])
        raise ValueError(
            f"{type(network).__name__} has no part {module!r} to load {path} into; its parts are {names}"
        ) from error
    load_pretrained(part, path, prefix=prefix, minimum_share=minimum_share)
    return network


def check_recipe(path: str | os.PathLike[str], recipe: Mapping[str, Any]) -> None:
    """Refuse to feed an encoder with other crops than it was trained on, which would give plausible, wrong numbers.

    Args:
        path: a file of `ExportEncoder`; files without a record pass.
        recipe: what this run uses, by the names of the record: `crop_size`, `crop_spacing`, `channels`, ...

    Raises:
        ValueError: names the first difference.
    """
    record = safe_load(path)
    record = record.get("provenance", {}) if isinstance(record, Mapping) else {}
    for name, value in recipe.items():
        if name in record and _canonical(record[name]) != _canonical(value):
            # MONAI's command line drops a plain None
            wanted = "'$None'" if record[name] is None else f'"{record[name]}"'
            raise ValueError(
                f"{path} was trained with {name} {record[name]}, this run has {value}: give --{name} {wanted}, or the "
                "overlay that it was trained with"
            )


def export_encoder(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    provenance: Mapping[str, Any],
    prefix: str = "encoder.",
) -> Path:
    """Write a checkpoint's encoder alone, under its own names, beside a record of where it comes from.

    The file is `{"model": state dict, "provenance": provenance}`, readable with `weights_only=True`.

    Args:
        checkpoint: a training checkpoint.
        output: file to write, atomically.
        provenance: method, config hash, data fingerprint, versions, seed, epochs and the like; JSON types only.
        prefix: the part to export; `encoder.backbone.` gives a `PooledEncoder`'s backbone under MONAI's own names.

    Returns:
        `output` as a path.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint cannot be read or holds nothing under `prefix`, or provenance is not JSON.
    """
    state = read_state(checkpoint)
    encoder = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not encoder:
        raise ValueError(
            f"{checkpoint} holds nothing under {prefix!r}; its names are {_first(list(state))}: give prefix"
        )
    atomic_save({"model": encoder, "provenance": json.loads(_canonical(provenance))}, output)
    return Path(output)


def fingerprint(obj: Any) -> str:
    """SHA-256 of a config, a list of files or anything else of JSON types, whatever the order of keys.

    Args:
        obj: dictionaries with string keys, lists or tuples, strings, finite numbers, booleans, None.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: if something in it is none of these.
    """
    return hashlib.sha256(_canonical(obj).encode()).hexdigest()


def read_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read the state dict of a checkpoint, without unpickling anything but tensors and plain Python types.

    Args:
        path: file that holds a state dict, by itself or under `model`, `encoder` or `state_dict`.

    Returns:
        Name -> tensor on the CPU; a leading `module.` of (distributed) data parallel training is removed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds pickled objects, or holds no state dict at these places.
    """
    content = safe_load(path)
    for key in STATE_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    named = dict(content) if isinstance(content, Mapping) else {}
    if not named or not all(isinstance(value, torch.Tensor) for value in named.values()):
        found = _first([str(name) for name in named]) or type(content).__name__
        raise ValueError(
            f"{path} holds no state dict, neither alone nor under {', '.join(STATE_KEYS)}, but {found}: "
            "save model.state_dict() under one of these names"
        )
    return {name.removeprefix("module."): tensor for name, tensor in named.items()}


def _find_prefix(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: str | os.PathLike[str]
) -> tuple[str, str]:
    """Find what to take from the file's names, or to put before them, so that most tensors fit; else leave them."""
    counts = {("", inner): count for inner, count in _prefixes(state, own).items()}
    counts |= {(outer, ""): count for outer, count in _prefixes(own, state).items()}
    most = max(counts.values(), default=0)
    best = [pair for pair, count in counts.items() if count == most]
    if not best or ("", "") in best:
        return "", ""
    if len(best) > 1:
        places = _first([f"file {outer!r}" if outer else f"network {inner!r}" for outer, inner in best])
        raise ValueError(f"{path} fits equally well at several places ({places}): give prefix, or module")
    return best[0]


def _compare(
    state: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    source: Mapping[str, str],
    path: str | os.PathLike[str],
    prefix: str,
) -> LoadReport:
    """Sort the names of `own` (network) and `state` (file); `source` maps network name -> file name."""
    shapes = {name: (tuple(state[source[name]].shape), tuple(own[name].shape)) for name in own if name in source}
    used = {source[name] for name in shapes}
    return LoadReport(
        path=str(path),
        prefix=prefix,
        matched=[name for name, (there, here) in shapes.items() if there == here],
        missing=[name for name in own if name not in shapes],
        unexpected=[name for name in state if name not in used],
        mismatched=[(name, there, here) for name, (there, here) in shapes.items() if there != here],
    )


def _prefixes(short: Mapping[str, torch.Tensor], long: Mapping[str, torch.Tensor]) -> Counter[str]:
    """Count for every prefix P the names of `long` that are P + a name of `short` with the same shape."""
    counts: Counter[str] = Counter()
    for name, tensor in long.items():
        parts = name.split(".")
        for cut in range(len(parts)):
            rest = short.get(".".join(parts[cut:]))
            if rest is not None and rest.shape == tensor.shape:
                counts["".join(f"{part}." for part in parts[:cut])] += 1
    return counts


def _canonical(obj: Any) -> str:
    """JSON text that is the same for equal content."""
    try:
        return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance and fingerprints take JSON types and finite numbers only: {error}") from error


def _first(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _sizes(shape: tuple[int, ...]) -> str:
    """`64x1x7`, or `scalar`."""
    return "x".join(map(str, shape)) or "scalar"
