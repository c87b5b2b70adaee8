"""Whether a volume's file is still what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from anatomy_ssl.data.reading import BadImageError, first_path
from anatomy_ssl.weights.files import file_hash, fingerprint

__all__ = ["source_fingerprint", "unchanged_time"]

_MIB = 1 << 20


def source_fingerprint(item: Mapping[str, Any]) -> dict[str, Any]:
    """What tells whether an item's volume has changed: path, size, time, and hashes of its ends and its whole content.

    Raises:
        BadImageError: a file is missing.
    """
    files = _files(item)
    content = fingerprint([file_hash(file) for file in files])
    return {"path": str(first_path(item["image"])), **_quick(files, item), "sha256": content}


def unchanged_time(known: Mapping[str, Any], item: Mapping[str, Any]) -> int | None:
    """When the files of a volume were last written, if their content is that of an earlier `source_fingerprint`.

    All of the content is compared only where the time differs.

    Args:
        known: the fingerprint.
        item: of a datalist.

    Returns:
        nanoseconds; None where the volume has changed.

    Raises:
        BadImageError: a file is missing.
    """
    files = _files(item)
    now = _quick(files, item)
    if any(known.get(name) != value for name, value in now.items() if name != "mtime_ns"):
        return None
    touched = known.get("mtime_ns") != now["mtime_ns"]
    if touched and fingerprint([file_hash(file) for file in files]) != known.get("sha256"):
        return None
    return int(now["mtime_ns"])


def _files(item: Mapping[str, Any]) -> list[Path]:
    """All files of a volume: of a DICOM folder, of a list, or a header with the data beside it."""
    files: list[Path] = []
    for part in map(first_path, ensure_tuple(item["image"])):
        if part.is_dir():
            files += sorted(file for file in part.iterdir() if file.is_file())
        elif part.suffix.lower() in (".mhd", ".nhdr", ".hdr", ".img"):
            stem = part.with_suffix("").name
            files += sorted(file for file in part.parent.iterdir() if file.name.startswith(f"{stem}."))
        else:
            files.append(part)
    if not files or not all(file.exists() for file in files):
        raise BadImageError(item["image"], "the file does not exist")
    return files


def _quick(files: Sequence[Path], item: Mapping[str, Any]) -> dict[str, Any]:
    """What is read of a volume's files each time that its embedding is opened."""
    try:
        stats = [file.stat() for file in files]
        ends = hashlib.sha256()
        with open(files[0], "rb") as stream:
            ends.update(stream.read(_MIB))
        with open(files[-1], "rb") as stream:  # a gzip file ends with a checksum of all its content
            stream.seek(max(0, stats[-1].st_size - _MIB))
            ends.update(stream.read())
    except OSError as error:
        raise BadImageError(item["image"], f"cannot be read ({error})") from error
    size, changed = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
    return {"files": len(files), "size": size, "mtime_ns": changed, "ends": ends.hexdigest()}
