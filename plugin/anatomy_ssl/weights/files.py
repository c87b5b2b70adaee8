"""Files of weights: what is in them, and fingerprints of what made them."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch

from anatomy_ssl.data.atomic import safe_load

__all__ = [
    "canonical",
    "file_hash",
    "fingerprint",
    "read_state",
    "read_weights",
    "settings_of",
    "some_of",
    "state_in",
    "stream_hash",
    "unusable",
]

STATE_KEYS = ("model", "encoder", "state_dict")  # the last is that of MONAI's published weights
SHOWN = 5  # names per list in reports and errors


def read_weights(
    path: str | os.PathLike[str], key: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a state dict and its record, without unpickling anything but tensors and plain Python types.

    Args:
        path: file that holds a state dict, by itself or under `model`, `encoder` or `state_dict`.
        key: the entry that holds it, where it is another, such as `teacher`; None looks at the places above.

    Returns:
        Name -> tensor on the CPU, where a leading `module.` of (distributed) data parallel training is removed; and
        what stands under `provenance`, empty where there is no record.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds pickled objects, or holds no state dict at these places.
    """
    content = safe_load(path)
    record = content.get("provenance") if isinstance(content, Mapping) else None
    return state_in(content, path, key), dict(record) if isinstance(record, Mapping) else {}


def state_in(content: Any, path: str | os.PathLike[str], key: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict in the content of a file, see `read_weights`.

    Args:
        content: of the file.
        path: the file, for messages.
        key: see `read_weights`.

    Raises:
        ValueError: if there is none.
    """
    entries = content if isinstance(content, Mapping) else {}
    if key is not None and not isinstance(entries.get(key), Mapping):
        found = some_of([str(name) for name in entries]) or type(content).__name__
        raise ValueError(f"{path} has no state dict under {key!r}, but {found}: give one of these as key, or no key")
    for place in STATE_KEYS if key is None else (key,):
        if isinstance(entries.get(place), Mapping):
            entries = entries[place]
            break
    if not entries or not all(isinstance(value, torch.Tensor) for value in entries.values()):
        found = some_of([str(name) for name in entries]) or type(content).__name__
        places = ", ".join(STATE_KEYS) if key is None else key
        raise ValueError(
            f"{path} holds no state dict, neither alone nor under {places}, but {found}: "
            "save model.state_dict() under one of these names, or give the key of the entry that holds it"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in entries.items()}


def read_state(path: str | os.PathLike[str], key: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict of `read_weights`, without the record."""
    return read_weights(path, key)[0]


def fingerprint(obj: Any) -> str:
    """SHA-256 of a config, a list of files or anything else of JSON types, whatever the order of keys.

    Args:
        obj: dictionaries with string keys, lists or tuples, strings, finite numbers, booleans, None.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: if something in it is none of these.
    """
    return hashlib.sha256(canonical(obj).encode()).hexdigest()


def settings_of(obj: Any) -> Any:
    """The class of an object and its public attributes, down to plain values, for a fingerprint.

    `str(obj)` leaves the settings of a transform, a distortion or a loss out, or shows an address in memory.

    Args:
        obj: an object, or lists, tuples and dictionaries of them; made up of plain Python objects, without cycles.

    Returns:
        JSON types.
    """
    if obj is None or isinstance(obj, (str, bool, int, float)):
        return str(obj)
    if isinstance(obj, Mapping):
        return {str(name): settings_of(value) for name, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [settings_of(value) for value in obj]
    if isinstance(obj, (np.ndarray, torch.Tensor)):
        return str(obj.tolist())
    if isinstance(obj, (torch.dtype, np.dtype, np.generic, enum.Enum, range)):
        return str(obj)
    if isinstance(obj, (set, frozenset)):
        return sorted(str(settings_of(value)) for value in obj)
    if isinstance(obj, functools.partial):
        return ["partial", settings_of(obj.func), settings_of(obj.args), settings_of(obj.keywords)]
    if isinstance(obj, types.LambdaType) and obj.__name__ == "<lambda>":
        return [obj.__qualname__, obj.__code__.co_code.hex(), settings_of(_constants(obj))]
    inside = {} if isinstance(obj, type) else getattr(obj, "__dict__", {})
    shown = {name: value for name, value in inside.items() if not name.startswith("_") or name == "_modules"}
    return [getattr(obj, "__qualname__", type(obj).__qualname__), settings_of(shown)]


def _constants(function: types.FunctionType) -> list[Any]:
    """What a lambda computes with: numbers, words and names in it, and what it took from where it was made."""
    code, cells = function.__code__, function.__closure__ or ()
    return [
        [c for c in code.co_consts if not isinstance(c, types.CodeType)],
        code.co_names,
        [c.cell_contents for c in cells],
    ]


def stream_hash(stream: BinaryIO, hash_type: str = "sha256") -> str:
    """Hexadecimal hash of an open file from its beginning."""
    digest = hashlib.new(hash_type, usedforsecurity=False)
    stream.seek(0)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def file_hash(path: str | os.PathLike[str], hash_type: str = "sha256") -> str:
    """Hash of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return stream_hash(file, hash_type)


def unusable(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """Tensors that a network would take without a word, and compute nonsense with.

    Args:
        state: name -> tensor to load.
        own: name -> tensor of the network; where it is infinite itself (a mask), so may the other be.

    Returns:
        Name and cause of each that is not finite, or has no floating point where the network has it.
    """
    found = []
    for name, tensor in state.items():
        here = own.get(name)
        if here is None or not here.is_floating_point():
            continue
        if not tensor.is_floating_point():
            found.append(f"{name} ({tensor.dtype}, network {here.dtype})".replace("torch.", ""))
            continue
        bad = ~tensor.to("cpu", here.dtype).isfinite()
        if bad.shape == here.shape:
            bad &= ~here.isinf().cpu()
        if bad.any():
            found.append(f"{name} (NaN or infinite)")
    return found


def canonical(obj: Any) -> str:
    """JSON text that is the same for equal content.

    Raises:
        ValueError: if something is no JSON type, or a number is not finite.
    """
    try:
        return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance and fingerprints take JSON types and finite numbers only: {error}") from error


def some_of(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
