"""Tables for people and for programs: the same rows as CSV and as aligned Markdown."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anatomy_ssl.data.atomic import atomic_write


def write_table(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], digits: int = 3) -> Path:
    """Write the rows to a CSV file in full precision, and rounded as Markdown to a `.md` file beside it.

    Args:
        path: the CSV file.
        rows: the columns are all keys in order of appearance; a row may lack some.
        digits: behind the decimal point in the Markdown.

    Returns:
        the path of the CSV file.
    """
    path = write_csv(path, rows)
    path.with_suffix(".md").write_text(markdown_table(rows, digits), encoding="utf-8")
    return path


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows to a CSV file in full precision, whole or not at all; returns its path."""
    path, text = Path(path), io.StringIO(newline="")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = csv.DictWriter(text, _columns(rows))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
    return path


def markdown_table(rows: Sequence[Mapping[str, Any]], digits: int = 3) -> str:
    """The rows as a Markdown table whose columns are aligned in plain text too; numbers to the right."""
    names = _columns(rows)
    cells = [[_cell(row.get(name, ""), digits) for name in names] for row in rows]
    numeric = [any(isinstance(row.get(name), (int, float)) for row in rows) for name in names]
    widths = [max([3, len(name), *(len(line[k]) for line in cells)]) for k, name in enumerate(names)]

    def line(texts: Sequence[str]) -> str:
        aligned = [t.rjust(w) if right else t.ljust(w) for t, w, right in zip(texts, widths, numeric)]
        return "| " + " | ".join(aligned) + " |\n"

    rule = ["-" * (w - 1) + ":" if right else "-" * w for w, right in zip(widths, numeric)]
    return line(names) + line(rule) + "".join(line(texts) for texts in cells)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys of the rows in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: Any, digits: int) -> str:
    """A value as short text: floats rounded, small ones (p values) by their leading digits."""
    if not isinstance(value, float) or not math.isfinite(value):
        return "" if value is None else str(value)
    return f"{value:.{digits}f}" if value == 0 or abs(value) >= 10.0**-digits else f"{value:.1e}"
