"""Lists of images from tables."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anatomy_ssl.data.datalist import absolute_paths, check_patients, require_files
from anatomy_ssl.data.folder import IMAGE_EXTENSIONS

__all__ = ["datalist_from_csv", "read_table"]

Item = dict[str, Any]


def read_table(path: str | os.PathLike[str], columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV with a header line, as text.

    Raises:
        FileNotFoundError: where the file is not there.
        ValueError: where one of `columns` is not in the header.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; give the CSV that lists the images.")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        header = list(reader.fieldnames or ())
        absent = [column for column in columns if column not in header]
        if absent:
            raise ValueError(f"{file} has no column {absent[0]!r}; it has {', '.join(map(str, header))}.")
        return [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader]


def datalist_from_csv(
    csv: str | os.PathLike[str],
    image: str = "image",
    subject: str | None = "patient_id",
    keys: Mapping[str, str] | None = None,
    where: str | None = None,
    labels: Sequence[str] = (),
) -> list[Item]:
    """Items from a table with one image a row.

    Args:
        csv: table with a header line; paths in it are relative to its folder.
        image: column with the image's path.
        subject: column with the patient's name; None: taken from the file name.
        keys: item key -> column, for further entries of the items (`{"label": "organs", "age": "age"}`): an image's
            path becomes absolute, a number a number; an empty cell leaves the entry out.
        where: rows to take, `column=value`; several with commas between must all hold: `long_fov=1,sex=F`.
        labels: columns with class labels (1, 0, -1 where uncertain, or other numbers), gathered as `{"labels": {column:
            value}}`; an empty cell is null, not known.

    Raises:
        FileNotFoundError: where the table or a file that it names is missing.
        ValueError: on an unknown column, a row without image, a label that is no number, no row left, and as
            `load_datalist` on images and patients listed twice.
    """
    table = Path(os.path.abspath(csv))
    conditions = _conditions(where) if where else {}
    fields = dict(keys or {})
    own = {"image": image, **({"subject": subject} if subject else {})}
    wanted = [*own.values(), *fields.values(), *labels, *conditions]
    rows = [
        row for row in read_table(table, wanted) if all(row[column] == value for column, value in conditions.items())
    ]
    if not rows:
        raise ValueError(f"No row of {table} has {where}." if where else f"{table} has no rows.")
    items = []
    for row in rows:
        item: Item = {key: row[column] for key, column in own.items()}
        if not item["image"]:
            raise ValueError(f"{table}: a row has no {image!r} ({', '.join(row.values())}); fill it or remove the row.")
        item |= {key: _number(row[column]) for key, column in fields.items() if row[column]}
        if labels:
            item["labels"] = {name: _label(row[name], name, row[image], table) for name in labels}
        paths = [key for key, value in item.items() if str(value).lower().endswith(IMAGE_EXTENSIONS)]
        items.append(absolute_paths(item, table.parent, paths))
    items = check_patients({"training": items}, str(table))["training"]
    require_files(items, _path_keys(items, fields), str(table))
    return items


def _conditions(where: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in where.split(",")]
    if not all(column.strip() and sign for column, sign, _ in pairs):
        raise ValueError(f"where={where!r} cannot be read; write column=value, with commas between several.")
    return {column.strip(): value.strip() for column, _, value in pairs}


def _path_keys(items: Sequence[Item], fields: Iterable[str]) -> list[str]:
    return [key for key in fields if any(str(item.get(key)).lower().endswith(IMAGE_EXTENSIONS) for item in items)]


def _number(text: str) -> int | float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):  # JSON has no NaN
        return text
    return int(text) if text.lstrip("+-").isdecimal() else value


def _label(text: str, name: str, image: str, table: Path) -> int | float | None:
    value = _number(text) if text else None
    if isinstance(value, str):
        raise ValueError(f"{table}: label {name!r} of {image} is {text!r}; give a number.")
    return value
