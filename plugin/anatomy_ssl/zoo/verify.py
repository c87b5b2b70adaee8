"""What MONAI, its model zoo and MONAI Label ask of a bundle, checked at once and without a network connection."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from .configs import check_ids, check_macros, check_portable
from .files import check_files
from .metadata import METADATA, check_metadata
from .network import check_network

__all__ = ["BundleError", "find_problems", "verify_bundle"]


class BundleError(ValueError):
    """A bundle that cannot be published.

    Attributes:
        problems: one sentence each, naming the file, the key and the remedy.
    """

    def __init__(self, bundle: str, problems: list[str]) -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n- ".join([f"{bundle} has {count}:", *problems]))


def _read(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Content of a JSON file and its problems; a missing file is reported among the files."""
    if not path.is_file() or path.stat().st_size == 0:
        return None, []
    name = f"configs/{path.name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return None, [f"{name}: is not JSON ({error}); correct it"]
    if not isinstance(content, dict):
        return None, [f"{name}: must be a table of ids; correct it"]
    return content, []


def find_problems(bundle: str | os.PathLike[str]) -> list[str]:
    """Everything that keeps a bundle from being published.

    Files, metadata (the fields of meta_schema_20240725), ids and portability of the JSON configs, weights that fill the
    networks of train.json and inference.json completely, one output tensor as in the metadata
    (`monai.bundle.verify_net_in_out`), and TorchScript (`monai.bundle.ckpt_export`).

    Args:
        bundle: the bundle's folder. Its configs are executed: verify only what you trust.

    Returns:
        One sentence per problem; none where the bundle is sound.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(bundle).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{bundle} is not a folder; give the folder of a bundle")
    problems = check_files(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", folder.name) or re.search(r"_v\d*.", folder.name):
        problems.append(f"{folder.name}: MONAI splits names at _v, and takes letters, digits and _; rename the folder")
    contents: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("configs/*.json")):
        content, unreadable = _read(path)
        problems += unreadable
        if content is not None:
            contents[path.stem] = content
            problems += check_portable(f"configs/{path.name}", content)
    metadata = contents.get("metadata", {})
    about_metadata = check_metadata(metadata) if "metadata" in contents else []
    problems += about_metadata
    readable = "metadata" in contents or not (folder / METADATA).is_file()  # MONAI reads it with every config
    kinds = []
    for kind in [str(kind) for kind in ("train", "inference") if kind in contents]:
        macros = check_macros(f"configs/{kind}.json", contents[kind])
        problems += macros + check_ids(kind, contents[kind])
        kinds += [kind] if readable and not macros else []
    formats = bool(metadata) and not any(p.startswith(f"{METADATA}, network_data_format") for p in about_metadata)
    return problems + check_network(folder, metadata, kinds, formats)


def verify_bundle(bundle: str | os.PathLike[str]) -> None:
    """Raise if a bundle cannot be published; see `find_problems`.

    Args:
        bundle: the bundle's folder.

    Raises:
        BundleError: with every problem.
        FileNotFoundError: there is no such folder.
    """
    problems = find_problems(bundle)
    if problems:
        raise BundleError(str(bundle), problems)
