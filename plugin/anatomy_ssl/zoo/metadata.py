"""Checks of configs/metadata.json: what meta_schema_20240725 and the model zoo ask for."""

from __future__ import annotations

import re
from typing import Any

import torch
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

__all__ = ["METADATA", "check_metadata", "check_version"]

METADATA = "configs/metadata.json"
SCHEMA = "meta_schema_20240725.json"
VERSIONS = ("version", "monai_version", "pytorch_version", "numpy_version")
TEXTS = ("schema", *VERSIONS, "task", "description", "authors", "copyright")
TABLES = ("changelog", "required_packages_version", "network_data_format")
TENSOR: dict[str, type] = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}
KINDS = {str: "a text", int: "an integer", list: "a list", bool: "true or false", dict: "a table"}


def _has_type(value: Any, kind: type) -> bool:
    """Like JSON schema: true is no integer, and an empty text says nothing."""
    if kind is int and isinstance(value, bool):
        return False
    return isinstance(value, kind) and value != ""


def _version(text: Any) -> Version | None:
    """A version that pip understands, else None."""
    try:
        return Version(str(text))
    except InvalidVersion:
        return None


def check_version(metadata: dict[str, Any]) -> list[str]:
    """Problems of `version` and `changelog`: the version must be the newest of the changelog.

    Args:
        metadata: content of configs/metadata.json.

    Returns:
        One sentence per problem.
    """
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if not isinstance(version, str) or not isinstance(changelog, dict):
        return []  # reported as missing
    bad = [text for text in (version, *changelog) if _version(text) is None]
    if bad:
        return [f"{METADATA}, changelog: {', '.join(bad)} is no version; write it like 0.1.0"]
    if version not in changelog:
        return [f"{METADATA}, changelog: lacks the version {version}; say there what is new in it"]
    newest = max(changelog, key=Version)
    if Version(newest) != Version(version):
        return [f"{METADATA}, version: {version} is older than {newest} of the changelog; make them agree"]
    return []


def _check_packages(metadata: dict[str, Any]) -> list[str]:
    """Versions that `pip install NAME==VERSION` cannot read."""
    problems = []
    packages = metadata.get("required_packages_version")
    for name, version in packages.items() if isinstance(packages, dict) else ():
        try:
            Requirement(f"{name}=={version}")
        except InvalidRequirement:
            problems.append(
                f"{METADATA}, required_packages_version#{name}: pip cannot install {name}=={version}; "
                "give the name on PyPI and one exact version"
            )
    for key in VERSIONS[1:]:
        if isinstance(metadata.get(key), str) and _version(metadata[key]) is None:
            problems.append(f"{METADATA}, {key}: {metadata[key]} is no version; write it like 1.5.1")
    return problems


def _check_tensor(key: str, tensor: Any) -> list[str]:
    """Fields of one input or output and their types."""
    if not isinstance(tensor, dict):
        return [f"{METADATA}, {key}: must be a table with {', '.join(TENSOR)}"]
    problems = [f"{METADATA}, {key}#{field}: is missing; add it" for field in TENSOR if field not in tensor]
    wrong = [name for name, kind in TENSOR.items() if name in tensor and not _has_type(tensor[name], kind)]
    problems += [f"{METADATA}, {key}#{field}: must be {KINDS[TENSOR[field]]}; correct it" for field in wrong]
    items = {"spatial_shape": ((int, str), "integers or texts like 16*n"), "value_range": ((int, float), "numbers")}
    for field, (kinds, text) in items.items():
        if isinstance(tensor.get(field), list) and not all(isinstance(item, kinds) for item in tensor[field]):
            problems.append(f"{METADATA}, {key}#{field}: must hold {text}; correct it")
    dtype = tensor.get("dtype")
    if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
        problems.append(f"{METADATA}, {key}#dtype: torch has no {dtype!r}; write for instance float32")
    return problems


def _check_tensors(metadata: dict[str, Any]) -> list[str]:
    """Inputs and outputs of the network; MONAI and MONAI Label take `image` and `pred`."""
    formats = metadata.get("network_data_format")
    if not isinstance(formats, dict):
        return []  # reported as missing
    problems = []
    for side, first in (("inputs", "image"), ("outputs", "pred")):
        key, tensors = f"network_data_format#{side}", formats.get(side)
        if not isinstance(tensors, dict) or next(iter(tensors), None) != first:
            problems.append(f"{METADATA}, {key}: the first entry must be {first!r}, which MONAI asks for; name it so")
        for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
            problems += _check_tensor(f"{key}#{name}", tensor)
    return problems


def check_metadata(metadata: dict[str, Any]) -> list[str]:
    """Problems of the metadata: required keys and types, versions, packages, tensors.

    Args:
        metadata: content of configs/metadata.json.

    Returns:
        One sentence per problem.
    """
    wanted = {**dict.fromkeys(TEXTS, str), **dict.fromkeys(TABLES, dict)}
    problems = [
        f"{METADATA}, {key}: {f'must be {KINDS[kind]}' if metadata.get(key) else 'is missing or empty'}; write it"
        for key, kind in wanted.items()
        if not _has_type(metadata.get(key), kind) or (not metadata[key] and key != "required_packages_version")
    ]
    if isinstance(metadata.get("schema"), str) and not re.search(rf"/{re.escape(SCHEMA)}$", metadata["schema"]):
        problems.append(f"{METADATA}, schema: must be the address of {SCHEMA}; copy it from another bundle of ours")
    if "supported_apps" in metadata:
        problems.append(f"{METADATA}, supported_apps: ties the bundle to versions of applications; leave it out")
    return problems + check_version(metadata) + _check_packages(metadata) + _check_tensors(metadata)
