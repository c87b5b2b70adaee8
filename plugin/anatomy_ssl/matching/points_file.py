"""Files of points in world millimetres: CSV, and the markups of 3D Slicer."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anatomy_ssl.data.atomic import atomic_write
from anatomy_ssl.data.table import read_table

__all__ = ["read_points", "write_markups"]

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.0.json#"
)


def read_points(path: str | os.PathLike[str]) -> tuple[list[str], torch.Tensor]:
    """Points by name.

    Args:
        path: a CSV with the columns x, y, z in world mm (RAS+), and, where points have names, `name`, `landmark` or
            `label`; or markups of 3D Slicer (`.mrk.json`) in RAS or LPS.

    Returns:
        the names, numbers from 1 for points without one, and `(N, 3)` float32 world mm, RAS+.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is absent, a coordinate is no number, a name is there twice, or there is no point.
    """
    file = Path(path)
    rows = _markups(file) if file.name.lower().endswith(".json") else _table(file)
    if not rows:
        raise ValueError(f"{file} has no points: give one a row, with the columns x, y and z in world mm (RAS+)")
    names = [name or str(number) for number, (name, _) in enumerate(rows, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file} has two points with the name {twice!r}: name each point differently")
    return names, torch.tensor([place for _, place in rows], dtype=torch.float32)


def _table(file: Path) -> list[tuple[str, list[float]]]:
    """The rows of a CSV."""
    try:
        rows = read_table(file, "xyz")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text: give a CSV, or markups of 3D Slicer (.mrk.json)") from error
    return [
        (
            next((row[key] for key in ("name", "landmark", "label") if row.get(key)), ""),
            _numbers([row[axis] for axis in "xyz"], f"{file}, row {number}"),
        )
        for number, row in enumerate(rows, start=1)
    ]


def _numbers(values: Sequence[Any], where: str) -> list[float]:
    """Three finite numbers."""
    try:
        place = [float(value) for value in values]
    except (TypeError, ValueError):
        place = []
    if len(place) != 3 or not all(map(math.isfinite, place)):
        raise ValueError(f"{where}: x, y and z are {', '.join(map(repr, values))}; give three numbers in world mm")
    return place


def _markups(file: Path) -> list[tuple[str, list[float]]]:
    """The control points of all lists in a file of 3D Slicer, turned to RAS."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; give the file of points.")
    found = []
    try:
        for markup in json.loads(file.read_text(encoding="utf-8"))["markups"]:
            system = str(markup.get("coordinateSystem", "LPS"))
            if system not in ("LPS", "RAS", "0", "1"):
                raise ValueError(f"{file} is in the coordinate system {system!r}: save it in LPS or RAS")
            signs = (1, 1, 1) if system in ("RAS", "0") else (-1, -1, 1)
            for point in markup["controlPoints"]:
                place = _numbers(point["position"], f"{file}, point {point.get('label')}")
                found.append((str(point.get("label", "")), [s * v for s, v in zip(signs, place)]))
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} holds no markups of 3D Slicer: save the points from its Markups module") from error
    return found


def write_markups(
    path: str | os.PathLike[str], names: Sequence[str], points: torch.Tensor, descriptions: Sequence[str] = ()
) -> Path:
    """Write points as a list of markups that 3D Slicer opens, whole or not at all.

    Args:
        path: the file, ending in `.mrk.json`.
        names: of the points.
        points: `(N, 3)` world mm, RAS+.
        descriptions: of the points, shown beside them.

    Returns:
        the path written.
    """
    controls = [
        {
            "id": str(number),
            "label": name,
            "description": descriptions[number - 1] if descriptions else "",
            "position": [round(value, 3) for value in place],
            "selected": True,
            "locked": False,
            "visibility": True,
            "positionStatus": "defined",
        }
        for number, (name, place) in enumerate(zip(names, points.double().tolist()), start=1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": controls}
    with atomic_write(path) as file:
        file.write(json.dumps({"@schema": _SCHEMA, "markups": [markup]}, indent=1).encode())
    return Path(path)
