"""Prepared scans on disk, mapped into memory, so that training reads no more than the boxes of its crops."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isal import isal_zlib
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.utils import ImageMetaKey, ensure_tuple
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anatomy_ssl.data.atomic import atomic_path, atomic_write
from anatomy_ssl.data.folder import file_stem
from anatomy_ssl.data.lookup_volume import LookupVolume
from anatomy_ssl.data.reading import BadImageError, first_path
from anatomy_ssl.data.source import source_fingerprint, unchanged_time
from anatomy_ssl.weights.files import fingerprint, settings_of

__all__ = ["ScanStore", "StoredFileError"]

logger = logging.getLogger(__name__)

VERSION = 1  # to be raised when a transform gives something else than before: recipes hold settings, no code
_FILES = ("image", "label", "lesion")  # entries of a datalist that may be relative paths
KEPT_OPEN = 1 << 28  # bytes of files that a process keeps mapped
_RECIPE = "recipe.json"


class StoredFileError(ValueError):
    """A stored scan that cannot be used: damaged, or of another state of its source. The message names the remedy."""


class ScanStore:
    """A folder with one safetensors file for each scan, as deterministic transforms leave it.

    A file holds everything that the transforms give: images in the integers and with the lookup table of a
    `LookupVolume`, or as they are; point sets; names and numbers. Beside it stand the fingerprint of the source files,
    the datalist's other entries, and a checksum of every tensor. It is written under another name and renamed when it
    is whole, so that any number of processes may read and write at once, and may be killed. Files of one preparation
    lie in one subfolder, `scans-HASH`, whose `recipe.json` says which; several preparations share a store.

    The format is chosen on measurement, see docs/store.md: a file is mapped, not read, and holds all of a scan.

    Args:
        folder: made when something is put there.
        transforms: deterministic, from a datalist's item to the prepared one.
    """

    def __init__(self, folder: str | os.PathLike[str], transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)
        self.recipe = settings_of(self.transforms)
        self.store = Path(folder)
        self.folder = self.store / f"scans-{fingerprint([VERSION, self.recipe])[:8]}"
        self._paths: dict[str, Path] = {}
        self._open: OrderedDict[Path, tuple[int, dict[str, Any]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped: a process that is started anew maps it again."""
        return {**self.__dict__, "_open": OrderedDict()}

    def path_of(self, item: Mapping[str, Any]) -> Path:
        """The file of a datalist's item, there or not yet: the image's name, and a hash of the whole entry."""
        entry = repr(sorted(item.items(), key=lambda pair: pair[0]))
        if entry not in self._paths:
            places = {key: _resolved(item[key]) for key in _source_keys(item)}
            stem = re.sub(r"[^\w.-]+", "_", file_stem(places["image"][0]))
            self._paths[entry] = self.folder / f"{stem}-{fingerprint([places, _described(item)])[:10]}.safetensors"
        return self._paths[entry]

    def get(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The prepared item, its tensors mapped from the file: to be read, not to be changed.

        The last few files stay mapped, up to `KEPT_OPEN` bytes of them, which spares small data sets the opening.

        Raises:
            StoredFileError: the file is absent, damaged or of another version.
        """
        path = self.path_of(item)
        if path not in self._open:
            self._open[path] = path.stat().st_size if path.exists() else 0, _read(path)
            while len(self._open) > 1 and sum(size for size, _ in self._open.values()) > KEPT_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return dict(self._open[path][1])

    def problem(self, item: Mapping[str, Any], verify: bool = False) -> str | None:
        """Why an item is to be prepared, or None where `get` would give what preparing it now would.

        Args:
            item: of a datalist.
            verify: compare the checksums as well, which reads the whole file.

        Raises:
            BadImageError: the source is missing.
        """
        path = self.path_of(item)
        if not path.exists():
            return f"{path} is not there yet"
        try:
            record = _record(path)
        except StoredFileError as error:
            return str(error)
        for key, known in record["sources"].items():
            if unchanged_time(known, {"image": item[key]}) is None:
                return f"{first_path(item[key])} has changed since {path} was made"
        return damage(path) if verify else None

    def put(self, item: Mapping[str, Any]) -> Path:
        """Prepare an item and write it, in the place of an older one; its file.

        Raises:
            BadImageError: the item cannot be prepared.
            TypeError: an entry of the prepared item cannot be stored.
        """
        sources = {key: _source(item[key]) for key in _source_keys(item)}
        prepared = Compose(self.transforms)(dict(item), threading=True)
        tensors, entries = _encoded(prepared)
        record = {"version": VERSION, "item": _described(item), "sources": sources, "entries": entries}
        record["checksums"] = {name: _checksum(tensor) for name, tensor in tensors.items()}
        if not (self.folder / _RECIPE).exists():
            with atomic_write(self.folder / _RECIPE) as file:
                file.write((json.dumps(self.recipe, indent=1) + "\n").encode())
        path = self.path_of(item)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"record": json.dumps(record)})
        self._open.pop(path, None)
        return path

    def free_bytes(self) -> int:
        """Room on the disk of the store."""
        self.store.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.store).free


def damage(path: Path) -> str | None:
    """What is wrong with a stored file, by its checksums; None where it is sound."""
    try:
        checksums = _record(path)["checksums"]
        with safe_open(path, "pt") as file:
            wrong = [name for name, known in checksums.items() if _checksum(file.get_tensor(name)) != known]
    except (StoredFileError, SafetensorError) as error:
        return str(error)
    return f"{path} is damaged: {', '.join(wrong)} is not what was written" if wrong else None


def source_problem(path: Path) -> str | None:
    """Whether the source of a stored scan is as it was; None if it is."""
    try:
        for known in _record(path)["sources"].values():
            if unchanged_time(known, {"image": known["paths"]}) is None:
                return f"{known['path']} has changed since {path} was made"
    except (StoredFileError, BadImageError) as error:
        return str(error)
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            entries = json.loads(file.metadata()["record"])["entries"]
            return {key: _decoded(file, key, entry) for key, entry in entries.items()}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, error) from error


def _record(path: Path) -> dict[str, Any]:
    """Everything about a stored scan but its tensors."""
    try:
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["record"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, error) from error
    if record.get("version") != VERSION:
        raise StoredFileError(
            f"{path} is of version {record.get('version')} of the store, not {VERSION}: build it anew"
        )
    return record


def _unusable(path: Path, error: Exception) -> StoredFileError:
    cause = "it is not there" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
    return StoredFileError(f"{path} cannot be read ({cause}): build the store anew, which replaces what is damaged")


def _encoded(prepared: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by name, and what else is needed to put the entries of an item together again."""
    tensors: dict[str, torch.Tensor] = {}
    entries: dict[str, Any] = {}
    for key, value in prepared.items():
        if isinstance(value, LookupVolume):
            tensors |= {f"{key}.codes": value.codes, f"{key}.table": value.table, f"{key}.affine": value.affine}
            plain = {name: getattr(value, name) for name in ("first", "name", "corner", "size", "outside", "lowest")}
            entries[key] = {"kind": "lookup", **plain}
        elif isinstance(value, MetaTensor):
            tensors |= {key: value.as_tensor(), f"{key}.affine": value.affine}
            entries[key] = {"kind": "image", "name": str(value.meta.get(ImageMetaKey.FILENAME_OR_OBJ, key))}
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            tensors[key] = torch.as_tensor(value)
            entries[key] = {"kind": "tensor" if isinstance(value, torch.Tensor) else "array"}
        elif _is_plain(value):
            entries[key] = {"kind": "value", "value": value}
        else:
            raise TypeError(
                f"the prepared {key!r} is a {type(value).__name__}, which a crop store cannot hold: end the "
                "preparation with SelectItemsd, or turn it into a tensor"
            )
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, entries


def _decoded(file: Any, key: str, entry: Mapping[str, Any]) -> Any:
    if entry["kind"] == "value":
        return entry["value"]
    if entry["kind"] in ("tensor", "array"):
        return file.get_tensor(key) if entry["kind"] == "tensor" else file.get_tensor(key).numpy()
    affine = file.get_tensor(f"{key}.affine")
    if entry["kind"] == "image":
        return MetaTensor(file.get_tensor(key), affine=affine, meta={ImageMetaKey.FILENAME_OR_OBJ: entry["name"]})
    known: dict[str, Any] = {name: entry[name] for name in ("first", "name", "lowest")}
    known |= {name: tuple(entry[name]) for name in ("corner", "size", "outside")}
    return LookupVolume(file.get_tensor(f"{key}.codes"), file.get_tensor(f"{key}.table"), affine=affine, **known)


def _is_plain(value: Any) -> bool:
    """Whether JSON gives it back as it is; by text, since NaN is not equal to itself."""
    try:
        return repr(json.loads(json.dumps(value))) == repr(value)
    except (TypeError, ValueError):
        return False


def _source_keys(item: Mapping[str, Any]) -> list[str]:
    """Entries of a datalist's item that name files."""
    return [key for key, value in item.items() if key == "image" or _names_files(value, key in _FILES)]


def _names_files(value: Any, relative: bool) -> bool:
    """Whether an entry holds paths of files; absolute ones, since a patient may be called as a folder is."""
    parts = ensure_tuple(value) if isinstance(value, (str, os.PathLike, list, tuple)) else ()
    if not parts or not all(isinstance(part, (str, os.PathLike)) for part in parts):
        return False
    return all((relative or os.path.isabs(part)) and os.path.exists(part) for part in parts)


def _resolved(files: Any) -> list[str]:
    return [str(first_path(part).resolve()) for part in ensure_tuple(files)]


def _source(files: Any) -> dict[str, Any]:
    return {**source_fingerprint({"image": files}), "paths": _resolved(files)}


def _described(item: Mapping[str, Any]) -> str:
    """The other entries, as JSON: names, attributes, an origin."""
    files = _source_keys(item)
    return json.dumps({key: value for key, value in item.items() if key not in files}, sort_keys=True, default=str)


def _checksum(tensor: torch.Tensor) -> int:
    return isal_zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else 0
