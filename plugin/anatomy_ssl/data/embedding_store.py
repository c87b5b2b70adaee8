"""Embeddings of volumes on disk, mapped into memory, which know what they were made from."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.utils import ensure_tuple

from anatomy_ssl.data.atomic import atomic_write
from anatomy_ssl.data.folder import file_stem
from anatomy_ssl.data.reading import BadImageError, first_path
from anatomy_ssl.data.source import source_fingerprint, unchanged_time
from anatomy_ssl.data.stored_embedding import StoredEmbedding
from anatomy_ssl.weights.files import canonical, fingerprint

if TYPE_CHECKING:
    from anatomy_ssl.matching.dense import DenseEmbedding

__all__ = ["EmbeddingStore"]

logger = logging.getLogger(__name__)

_ARRAYS = ("fine", "coarse", "norms", "cell_norms")
_VALUES = ("largest_norm", "fine_stride", "coarse_stride", "subject", "source")
_RECORD = "embedding.json"
_REMEDY = "write it with embed.yaml"
_MIB = 1 << 20
_ABANDONED = 3600  # seconds after which a temporary folder belongs to no living process


class EmbeddingStore:
    """A folder with one subfolder for each embedded volume.

    In it are the arrays of `StoredEmbedding` (`fine.npy`, `coarse.npy`, `norms.npy`, `cell_norms.npy`) and
    `embedding.json` with its other values, the source file's fingerprint, what embedded it, and sizes and checksums of
    the arrays. A subfolder is written under another name and renamed when it is whole, so that processes may read and
    write at the same time.

    Args:
        folder: made when something is put there.
        model: what makes the embeddings, in JSON types (`VolumeEmbedder.model`): those of another one are stale. None
            takes them all.
    """

    def __init__(self, folder: str | os.PathLike[str], model: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.model: dict[str, Any] | None = None if model is None else json.loads(canonical(dict(model)))

    def folder_of(self, item: Mapping[str, Any]) -> Path:
        """The subfolder of an item's volume, whether it is there or not: the file's name and a hash of its path."""
        paths = [str(first_path(part).resolve()) for part in ensure_tuple(item["image"])]
        stem = re.sub(r"[^\w.-]+", "_", file_stem(paths[0]))
        return self.folder / f"{stem}-{fingerprint(paths)[:10]}"

    def get(self, item: Mapping[str, Any], verify: bool = False) -> StoredEmbedding:
        """The embedding of an item's volume, its arrays mapped from their files.

        Args:
            item: of a datalist, with the path of the volume under `image`.
            verify: compare all checksums. Else that is done only for files whose time is not that of their writing.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged; the volume has changed since; or another model made it.
            BadImageError: the volume's file is missing.
        """
        folder = self.folder_of(item)
        before = _text(folder)
        try:
            return self._open(item, folder, verify)
        except (ValueError, OSError):
            if before is None:
                raise
            time.sleep(0.05)
            if _text(folder) == before:
                raise
            return self._open(item, folder, verify)  # another process was just replacing it

    def problem(self, item: Mapping[str, Any], verify: bool = False) -> str | None:
        """Why an item's embedding is to be made, or None where `get` would give it."""
        try:
            self.get(item, verify)
        except BadImageError:
            raise
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        return None

    def is_current(self, item: Mapping[str, Any], verify: bool = False) -> bool:
        """Whether `get` would give the embedding of an item's volume."""
        return self.problem(item, verify) is None

    def put(self, item: Mapping[str, Any], dense: DenseEmbedding, source: Mapping[str, Any] | None = None) -> Path:
        """Write the embedding of an item's volume, in the place of an older one.

        Args:
            item: of a datalist.
            dense: the embedding.
            source: `source_fingerprint` of the volume, taken before it was read; None takes it now.

        Returns:
            its subfolder.

        Raises:
            ValueError: the embedding is not finite, or its maps do not belong together.
        """
        folder = self.folder_of(item)
        stored = StoredEmbedding.from_dense(dense)
        source = source_fingerprint(item) if source is None else source
        self._remove_abandoned(folder)
        temporary = self.folder / f".{folder.name}.{uuid.uuid4().hex}.tmp"
        temporary.mkdir(parents=True)
        try:
            arrays = {name: _write_array(temporary / f"{name}.npy", getattr(stored, name)) for name in _ARRAYS}
            values = {name: getattr(stored, name) for name in _VALUES}
            place = {"affine": stored.affine.tolist(), "shape": list(stored.shape)}
            origin = {"of": dict(source), "model": self.model}
            _write_record(temporary, {"version": 1, **values, **place, **origin, "arrays": arrays})
            self._move(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _open(self, item: Mapping[str, Any], folder: Path, verify: bool) -> StoredEmbedding:
        record = _read_record(folder, item)
        if self.model is not None and record["model"] != self.model:
            raise ValueError(f"{folder} was made by {_difference(record['model'], self.model)}: {_REMEDY}")
        stamps = [_check_source(record["of"], item, folder)]
        stamps += [_check_array(folder, name, record["arrays"][name], verify) for name in _ARRAYS]
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in _ARRAYS}
        if any(stamps):  # found good by its content: the next time, the time of its writing will do
            try:
                _write_record(folder, record)
            except OSError:
                logger.debug("%s cannot be written to", folder)
        place: dict[str, Any] = {"affine": np.array(record["affine"]), "shape": tuple(record["shape"])}
        return StoredEmbedding(**arrays, **{name: record[name] for name in _VALUES}, **place)

    def _move(self, temporary: Path, folder: Path) -> None:
        """Rename a whole subfolder to its place, from which an older one is taken away."""
        for _ in range(100):
            try:
                os.rename(temporary, folder)
                return
            except OSError:
                if not folder.exists():
                    raise
            old = self.folder / f".{folder.name}.{uuid.uuid4().hex}.tmp"
            try:
                os.rename(folder, old)
            except FileNotFoundError:  # another process took it away
                continue
            shutil.rmtree(old, ignore_errors=True)
        raise OSError(f"{folder} cannot be replaced: other processes write it all the time")

    def _remove_abandoned(self, folder: Path) -> None:
        for path in self.folder.glob(f".{folder.name}.*.tmp"):
            try:
                abandoned = time.time() - path.stat().st_mtime > _ABANDONED
            except FileNotFoundError:
                continue
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)


def _check_source(known: dict[str, Any], item: Mapping[str, Any], folder: Path) -> bool:
    """Refuse an embedding of another state of its volume. True where only its time differs, which is then renewed.

    Raises:
        ValueError: the volume has changed.
    """
    now = unchanged_time(known, item)
    if now is None:
        raise ValueError(f"{first_path(item['image'])} has changed since its embedding {folder} was made: {_REMEDY}")
    touched = now != known["mtime_ns"]
    known["mtime_ns"] = now
    return touched


def _check_array(folder: Path, name: str, known: dict[str, Any], verify: bool) -> bool:
    """Refuse a damaged file. True where its time was not that of its writing, which is then renewed.

    Raises:
        ValueError: the file is not what was written.
    """
    path = folder / f"{name}.npy"
    stat = path.stat() if path.is_file() else None
    if stat is None or stat.st_size != known["size"]:
        size = "missing" if stat is None else f"{stat.st_size} bytes long instead of {known['size']}"
        raise ValueError(f"{path} is {size}, the embedding is damaged: {_REMEDY}")
    touched = stat.st_mtime_ns != known["mtime_ns"]
    if (touched or verify) and _checksum(path) != known["crc32"]:
        raise ValueError(f"{path} has another checksum than when it was written, the embedding is damaged: {_REMEDY}")
    known["mtime_ns"] = stat.st_mtime_ns
    return touched


def _text(folder: Path) -> str | None:
    try:
        return (folder / _RECORD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _read_record(folder: Path, item: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a subfolder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = folder / _RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{first_path(item['image'])} has no embedding in {folder.parent}: {_REMEDY}")
    try:
        record = json.loads(_text(folder) or "")
        checksum = record.pop("checksum")
        whole = checksum == fingerprint(record)
    except (ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{path} cannot be read, the embedding is damaged: {_REMEDY}")
    return record


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    with atomic_write(folder / _RECORD) as file:
        file.write((json.dumps({**record, "checksum": fingerprint(record)}, indent=1) + "\n").encode())


def _write_array(path: Path, array: np.ndarray) -> dict[str, int]:
    """Write an array; its size, checksum and time."""
    with atomic_write(path) as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    stat = path.stat()
    return {"size": stat.st_size, "crc32": _checksum(path), "mtime_ns": stat.st_mtime_ns}


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_MIB):
            value = zlib.crc32(block, value)
    return value


def _difference(known: Any, wanted: Mapping[str, Any]) -> str:
    """In which entry one model differs from another, in words."""
    known = known if isinstance(known, Mapping) else {}
    name = next((name for name, value in wanted.items() if known.get(name) != value), "model")
    if name == "sha256":
        return "another embedding.pt"
    plain = not isinstance(wanted.get(name), Mapping)
    return f"another {name}" + (f" ({known.get(name)}, not {wanted.get(name)})" if plain else "")
