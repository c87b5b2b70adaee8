"""Which files of a bundle are published, and its list of large files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ..weights.files import file_hash

__all__ = ["LARGE_FILE_BYTES", "check_files", "large_file_entries", "published_files"]

LARGE_FILE_BYTES = 25_000_000  # 25 MB, the model zoo's limit for a file inside of a bundle
MODEL = "models/model.pt"
REQUIRED_FILES = (
    "LICENSE",
    "configs/metadata.json",
    "configs/inference.json",
    "configs/train.json",
    MODEL,
    "docs/README.md",
    "docs/data_license.txt",
)
LARGE_FILE_LISTS = ("large_files.yml", "large_files.yaml", "large_files.json")
HASH_TYPES = ("md5", "sha1", "sha256", "sha512")  # those of monai.apps.utils.check_hash
SUFFIXES = {
    "configs": (".json", ".yaml", ".yml", ".conf"),
    "docs": (".md", ".txt", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".csv", ".json", ".pdf"),
    "models/pretrained": (".pt", ".ts", ".json", ".yaml", ".md", ".txt"),
}
SINGLE = ("LICENSE", *LARGE_FILE_LISTS, MODEL, "models/model.ts")


def _published(name: PurePosixPath) -> bool:
    """A list of what belongs in, so that nobody publishes scans or runs that lie in the bundle's folder."""
    if any(part.startswith(".") or part == "__pycache__" for part in name.parts):
        return False
    if str(name) in SINGLE:
        return True
    folders = [str(folder) for folder in name.parents if str(folder) in SUFFIXES]
    return bool(folders) and name.suffix.lower() in SUFFIXES[folders[0]]


def published_files(bundle: Path) -> tuple[list[str], list[str]]:
    """Files of a bundle that are published, and those that stay: runs, caches, data and hidden files.

    Args:
        bundle: the bundle's folder.

    Returns:
        Published files and files left out, both sorted, as paths within the bundle with `/`.
    """
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    published = [name for name in names if _published(PurePosixPath(name))]
    return published, sorted(set(names) - set(published))


def large_file_entries(bundle: Path) -> list[dict[str, Any]]:
    """Entries of large_files.yml (.yaml, .json), in the form that `monai.bundle.download_large_files` reads.

    Args:
        bundle: the bundle's folder.

    Returns:
        Dictionaries with path (within the bundle), url, hash_val and hash_type; none where there is no list.

    Raises:
        ValueError: there are several lists, or one that cannot be read.
    """
    lists = [name for name in LARGE_FILE_LISTS if (bundle / name).is_file()]
    if len(lists) > 1:
        raise ValueError(f"{' and '.join(lists)}: one list hides the other when MONAI reads them; keep one")
    if not lists:
        return []
    try:
        entries = yaml.safe_load((bundle / lists[0]).read_text(encoding="utf-8"))["large_files"]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{lists[0]}: is no list under the key large_files; write path, url, hash_val, hash_type"
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{lists[0]}, large_files: must be a list of entries with path, url, hash_val and hash_type")
    return entries


def _check_large_file(bundle: Path, number: int, entry: dict[str, Any]) -> list[str]:
    """Problems of one entry of the list of large files."""
    where = f"large_files, entry {number}"
    missing = [key for key in ("path", "url", "hash_val", "hash_type") if not entry.get(key)]
    if missing:
        return [f"{where}: lacks {', '.join(missing)}; `zoo pack --url` writes complete entries by itself"]
    path = PurePosixPath(str(entry["path"]))
    if path.is_absolute() or ".." in path.parts:
        return [f"{where}, path: {path} leaves the bundle; give the path within the bundle"]
    if entry["hash_type"] not in HASH_TYPES:
        return [f"{where}, hash_type: {entry['hash_type']} is unknown; use {', '.join(HASH_TYPES)}"]
    if (bundle / path).is_file() and file_hash(bundle / path, entry["hash_type"]) != entry["hash_val"]:
        return [f"{where}, hash_val: is not that of {path}; download the file again, or remove the entry and pack anew"]
    return []


def check_files(bundle: Path) -> list[str]:
    """Problems of the bundle's files: missing ones, Python, weights in the wrong place, the list of large files.

    Args:
        bundle: the bundle's folder.

    Returns:
        One sentence per problem.
    """
    problems: list[str] = []
    entries: list[dict[str, Any]] = []
    try:
        entries = large_file_entries(bundle)
    except ValueError as error:
        problems.append(str(error))
    listed = {str(entry.get("path")) for entry in entries}
    for name in REQUIRED_FILES:
        path = bundle / name
        remedy = "train the bundle, or list the file in large_files.yml" if name == MODEL else "write it"
        if not path.is_file() and name not in listed:
            problems.append(f"{name}: the file is missing; {remedy}")
        elif path.is_file() and path.stat().st_size == 0:
            problems.append(f"{name}: the file is empty; {remedy}")
    for number, entry in enumerate(entries, start=1):
        problems += _check_large_file(bundle, number, entry)
    problems += [
        f"{path.relative_to(bundle).as_posix()}: a bundle holds no Python; move the code to the package"
        for path in sorted(bundle.rglob("*.py"))
    ]
    problems += [
        f"models/{path.name}: MONAI Label offers every models/*.pt as a model; move it to models/pretrained/"
        for path in sorted(bundle.glob("models/*.pt"))
        if path.name != "model.pt" and not path.name.startswith(".")
    ]
    return problems
