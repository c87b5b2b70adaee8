"""Checks of a bundle's JSON configs: required ids, and nothing that ties them to another file, folder or machine."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils.enums import BundleProperty, BundlePropertyConfig

__all__ = ["check_ids", "check_macros", "check_portable"]

TRAIN_IDS = ("network_def", "train#dataset#data", "train#handlers", "output_dir", "run", "training")
VALIDATE_IDS = ("validate#evaluator", "validate#handlers", "validate#dataset", "validate#dataset#data", "val_interval")
INFERENCE_IDS = ("run",)
ENVIRONMENT = re.compile(r"\benviron\b|\bgetenv\b|\bexpandvars\b|\bexpanduser\b|\bPath\.home\b|\$\{\w+\}")
ABSOLUTE = re.compile(r"(/|~/|file://)\w|[A-Za-z]:[\\/]|\\\\\w")


def _strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a config with its id."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, (dict, list)):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _strings(value, f"{key}#{name}" if key else str(name))


def _literals(expression: str) -> list[str]:
    """Texts in a config expression, without those that continue another one (`@bundle_root + '/models'`)."""
    try:
        tree = ast.parse(re.sub(r"@[\w#:]+", "reference", expression).strip())
    except SyntaxError:
        return []  # MONAI says so when the config is parsed
    continued: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            continued.add(id(node.right))
        elif isinstance(node, ast.JoinedStr):
            continued |= {id(part) for part in node.values[1:]}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in continued
    ]


def check_macros(file: str, content: Any) -> list[str]:
    """Macros on other files (`%other.yaml#key`), which break from any other working directory.

    Args:
        file: name for the sentences, `configs/train.json`.
        content: of the JSON file.

    Returns:
        One sentence per problem.
    """
    return [
        f"{file}, {key}: {text} reads another file, which MONAI Label and load() do not find; copy the value here"
        for key, text in _strings(content)
        if text.startswith("%") and ConfigParser.split_path_id(text[1:])[0]
    ]


def check_portable(file: str, content: Any) -> list[str]:
    """Absolute paths and the environment, which break a config on another machine.

    Args:
        file: name for the sentences, `configs/train.json`.
        content: of the JSON file.

    Returns:
        One sentence per problem.
    """
    problems = []
    for key, text in _strings(content):
        expression = text.startswith("$")
        if any(ABSOLUTE.match(path) for path in (_literals(text[1:]) if expression else [text])):
            problems.append(f"{file}, {key}: {text} is an absolute path; start from @bundle_root or @dataset_dir")
        if ENVIRONMENT.search(text):
            problems.append(f"{file}, {key}: {text} reads the environment; make it a key that users override")
    return problems


def _required_ids(kind: str, parser: ConfigParser) -> list[str]:
    """Ids that MONAI, its model zoo and MONAI Label look for."""
    properties = TrainProperties if kind == "train" else InferProperties
    ids = [str(p[BundlePropertyConfig.ID]) for p in properties.values() if p[BundleProperty.REQUIRED]]
    ids = [name.replace("::", "#") for name in ids] + list(TRAIN_IDS if kind == "train" else INFERENCE_IDS)
    if kind == "train" and "validate" in parser:
        ids += VALIDATE_IDS
    return ids


def _references(kind: str, parser: ConfigParser) -> Iterator[tuple[str, Any, str]]:
    """Places that MONAI asks to refer to a property by its id: (where, value found, id)."""
    properties = TrainProperties if kind == "train" else InferProperties
    handlers = parser.get("train#handlers") if kind == "train" else None
    validation = [
        (f"train#handlers#{number}", handler)
        for number, handler in enumerate(handlers if isinstance(handlers, list) else [])
        if isinstance(handler, dict) and handler.get("_target_") == "ValidationHandler"
    ]
    for name, item in properties.items():
        wanted = str(item[BundlePropertyConfig.ID]).replace("::", "#")
        reference = str(item.get(BundlePropertyConfig.REF_ID) or "").replace("::", "#")
        if reference and name in ("evaluator", "val_interval") and kind == "train":
            for where, handler in validation:
                yield f"{where}#{reference}", handler.get(reference), wanted
        elif reference:
            yield reference, parser.get(reference, None), wanted


def check_ids(kind: str, content: dict[str, Any]) -> list[str]:
    """Missing ids of configs/KIND.json, and values written inline where MONAI asks for a reference.

    Args:
        kind: "train" or "inference".
        content: of the JSON file.

    Returns:
        One sentence per problem.
    """
    file, parser = f"configs/{kind}.json", ConfigParser(content)
    missing = [name for name in _required_ids(kind, parser) if name not in parser]
    problems = [
        f"{file}, {name}: is missing; MONAI and its zoo look it up by this id"
        for name in missing
        if not name.startswith(tuple(f"{parent}#" for parent in missing))
    ]
    if kind == "train" and "train#handlers" in parser and not isinstance(parser.get("train#handlers"), list):
        problems.append(f"{file}, train#handlers: must be a list, since MONAI Label inserts a handler; write it as one")
    for where, value, wanted in _references(kind, parser):
        text = value if isinstance(value, str) else ""
        if value is not None and not text.startswith("$") and text.replace("::", "#") != f"@{wanted}":
            problems.append(f"{file}, {where}: must refer to @{wanted}; move what is there to that id")
    return problems
