"""The zip of a bundle for `monai.bundle.download`, the large files beside it, and the index of a model zoo."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from ..data.atomic import atomic_write
from ..weights.files import file_hash, stream_hash
from .files import LARGE_FILE_BYTES, LARGE_FILE_LISTS, large_file_entries, published_files
from .metadata import METADATA
from .verify import verify_bundle

__all__ = ["Packed", "pack_bundle"]

logger = logging.getLogger(__name__)

SHOWN = 5  # files named in the message about what is left out
EARLIEST = (1980, 1, 1, 0, 0, 0)  # of a zip; equal content gives equal bytes


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        archive: the zip.
        sha256: of the zip.
        index: the model_info file.
        large_files: files beside the zip, to be put under the same address.
    """

    archive: Path
    sha256: str
    index: Path
    large_files: list[Path]


def _add(archive: zipfile.ZipFile, name: str, source: Path | bytes) -> None:
    """One file, uncompressed: the bytes of compression differ between versions of zlib, and weights hardly shrink."""
    entry = zipfile.ZipInfo(name, date_time=EARLIEST)
    entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix on every system
    with archive.open(entry, "w") as target:
        if isinstance(source, bytes):
            target.write(source)
        else:
            with open(source, "rb") as stream:
                shutil.copyfileobj(stream, target)


def _large_entries(bundle: Path, names: list[str], release: str, url: str) -> dict[str, dict[str, str]]:
    """Entries of the list of large files for files over the limit, by the names that they get beside the zip."""
    large = [name for name in names if (bundle / name).stat().st_size > LARGE_FILE_BYTES]
    if large and not url:
        raise ValueError(
            f"{', '.join(large)}: over {LARGE_FILE_BYTES // 1_000_000} MB; give the download address by --url"
        )
    entries: dict[str, dict[str, str]] = {}
    for name in large:
        beside = f"{release}_{name.replace('/', '_')}"
        if beside in entries:
            raise ValueError(f"{name} and {entries[beside]['path']} get one name beside the zip; rename one of them")
        hashed = {"hash_val": file_hash(bundle / name), "hash_type": "sha256"}
        entries[beside] = {"path": name, "url": f"{url}/{beside}", **hashed}
    return entries


def _read_index(index: Path) -> dict[str, Any]:
    """Content of the index; empty where there is none yet."""
    if not index.is_file():
        return {}
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{index} is not JSON ({error}); repair it, or give another file by --index") from error
    if not isinstance(content, dict):
        raise ValueError(f"{index} is no index of bundles; give another file by --index")
    return content


def _write_archive(file: BinaryIO, bundle: Path, names: list[str], entries: list[dict[str, Any]]) -> None:
    """The zip with the bundle's folder inside. `entries`: list of large files, where it is new."""
    contents: dict[str, Path | bytes] = {name: bundle / name for name in names}
    if entries:
        contents = {name: source for name, source in contents.items() if name not in LARGE_FILE_LISTS}
        contents[LARGE_FILE_LISTS[0]] = yaml.safe_dump({"large_files": entries}, sort_keys=False).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(contents):
            _add(archive, f"{bundle.name}/{name}", contents[name])


def _entry(file: BinaryIO, known: dict[str, Any], release: str, url: str, index: Path) -> dict[str, Any]:
    """Entry of the index; the checksum is MONAI's, SHA-1."""
    checksum = stream_hash(file, "sha1")
    if known and known.get("checksum") != checksum:
        raise ValueError(
            f"{release} is in {index} with other content: raise the version in {METADATA}, with a line in its changelog"
        )
    source = f"{url}/{release}.zip" if url else known.get("source", f"{release}.zip")
    return {"checksum": checksum, "source": source, "sha256": stream_hash(file)}


def pack_bundle(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    url: str = "",
    index: str | os.PathLike[str] | None = None,
) -> Packed:
    """Verify a bundle and write NAME_vVERSION.zip, its large files and the index.

    The zip holds the bundle's folder: licence, configs, docs, models/model.pt and models/pretrained. Files over 25 MB,
    and those that large_files.yml names already, stay out of it; the former are laid beside it and added to the zip's
    large_files.yml. Equal content gives equal bytes. Each file appears whole or not at all, the index last.

    Args:
        bundle: the bundle's folder; its name is the bundle's.
        output: folder to write.
        url: where the files of `output` will be downloaded from, without the file names.
        index: file like the model zoo's model_info.json, written or updated; by default in `output`. Without `url`, the
            source of a new entry is the zip's bare name.

    Returns:
        Where the files are, and the zip's hash.

    Raises:
        BundleError: the bundle has problems.
        ValueError: the index has this version with other content, a large file has no address, or `output` is in the
            bundle.
    """
    folder, output = Path(bundle).resolve(), Path(output)
    if output.resolve().is_relative_to(folder):
        raise ValueError(f"{output} is in the bundle, which would then hold its own zip: give another output")
    verify_bundle(bundle)
    index, url = Path(index or output / "model_info.json"), url.rstrip("/")
    version = json.loads((folder / METADATA).read_text(encoding="utf-8"))["version"]
    release = f"{folder.name}_v{version}"
    known = _read_index(index)
    names, left_out = published_files(folder)
    listed = large_file_entries(folder)
    names = [name for name in names if name not in {entry["path"] for entry in listed}]
    large = _large_entries(folder, names, release, url)
    names = [name for name in names if name not in {entry["path"] for entry in large.values()}]
    if left_out:
        shown = ", ".join(left_out[:SHOWN]) + (", ..." if len(left_out) > SHOWN else "")
        logger.info("left out %d files: %s", len(left_out), shown)
    archive = output / f"{release}.zip"
    with atomic_write(archive) as file:
        _write_archive(file, folder, names, [*listed, *large.values()] if large else [])
        entry = _entry(file, known.get(release, {}), release, url, index)
        for beside, listing in large.items():
            with open(folder / listing["path"], "rb") as source, atomic_write(output / beside) as target:
                shutil.copyfileobj(source, target)
    with atomic_write(index) as file:
        file.write((json.dumps({**known, release: entry}, indent=4) + "\n").encode())
    return Packed(archive, entry["sha256"], index, [output / beside for beside in large])
