"""Rows as a table, as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .timing import Row, median

HEAD = ("what", "plain", "ours", "ratio (from, to)", "asked")


def cells(row: Row) -> list[str]:
    """A row of the table."""
    ratio, asked = "", ""
    if row.ratios:
        ratio = times(median(row.ratios))
        if len(row.ratios) > 1:
            ratio += f" ({times(min(row.ratios))}, {times(max(row.ratios))})"
    if row.at_least is not None:
        asked = f"at least {times(row.at_least)}"
    if row.at_most is not None:
        asked = f"at most {amount(row.at_most, row.unit)}"
    if row.met is not None:
        asked += "" if row.met else " (missed)"
    what = f"{row.what} ({row.note})" if row.note else row.what
    plain = amount(median(row.plain), row.unit) if row.plain else ""
    return [what, plain, amount(median(row.ours), row.unit), ratio, asked]


def amount(value: float, unit: str) -> str:
    """A number a reader can take in."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    if unit == "MB":
        return f"{value / 1e3:.1f} GB" if value >= 1000 else f"{value:.0f} MB"
    return f"{value:.1f}%"


def times(ratio: float) -> str:
    """A ratio."""
    return f"{ratio:,.0f}x" if ratio >= 20 else f"{ratio:.2g}x"


def markdown(rows: Mapping[str, Sequence[Row]]) -> str:
    """The table of docs/benchmarks.md."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---:|---:|---:|---|"]
    for found in rows.values():
        lines += ["| " + " | ".join(cells(row)) + " |" for row in found]
    return "\n".join(lines) + "\n"


def plain_text(rows: Sequence[Row]) -> str:
    """The same for a terminal."""
    table = [list(HEAD), *map(cells, rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table)


def write_json(path: Path, rows: Mapping[str, Sequence[Row]], machine: Mapping[str, Any], size: str) -> None:
    """All repeats, with what they were measured on."""
    found = {
        name: [{**asdict(row), "ratio": median(row.ratios) if row.ratios else None, "met": row.met} for row in group]
        for name, group in rows.items()
    }
    path.write_text(json.dumps({"machine": dict(machine), "size": size, "benchmarks": found}, indent=1) + "\n")


def plot(path: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    """Bars of the ratios on a logarithmic axis, with what was asked.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the picture needs matplotlib: pip install anatomy-ssl[figures]") from error
    compared = [row for group in rows.values() for row in group if row.ratios][::-1]
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(compared)), layout="constrained")
    axes = figure.subplots()
    middle = [median(row.ratios) for row in compared]
    reach = [
        [m - min(r.ratios) for m, r in zip(middle, compared)],
        [max(r.ratios) - m for m, r in zip(middle, compared)],
    ]
    axes.barh([row.what for row in compared], middle, xerr=reach, color="tab:blue", ecolor="black")
    for place, row in enumerate(compared):
        if row.at_least is not None:
            axes.plot([row.at_least] * 2, [place - 0.4, place + 0.4], color="tab:red", linewidth=2.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("plain / ours: how many times less time or memory; black: range of the repeats; red: asked")
    figure.savefig(path, dpi=130)
