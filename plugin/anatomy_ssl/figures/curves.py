"""What the training did: one small panel per logged value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anatomy_ssl.data.table import read_table
from anatomy_ssl.figures.canvas import PALETTE, new_figure, save

Curves = Mapping[str, Sequence[float]]


def training_curves(
    curves: str | os.PathLike[str] | Curves, path: str | os.PathLike[str], x: str = "epoch", columns: int = 3
) -> Path:
    """Every logged value against the epoch, each in its own panel.

    Args:
        curves: columns of equal length by name, NaN where there is no value (for instance epochs without validation);
            or a CSV file with a header, whose empty cells mean the same.
        path: the picture to write.
        x: the column for the horizontal axis; where there is none, the rows are counted from 1.
        columns: panels side by side.

    Raises:
        FileNotFoundError: the CSV is missing.
        ValueError: a column is not numeric, columns differ in length, or there is nothing to draw.
    """
    values = _read(curves) if isinstance(curves, (str, os.PathLike)) else {k: list(v) for k, v in curves.items()}
    if len({len(column) for column in values.values()}) > 1:
        raise ValueError(f"The curves differ in length: { {name: len(column) for name, column in values.items()} }.")
    data = {name: np.asarray(column, dtype=float) for name, column in values.items()}
    names = [name for name in data if name != x and np.isfinite(data[name]).any()]
    if not names:
        raise ValueError(f"There is no curve with a value to draw among {', '.join(data) or 'no columns'}.")
    horizontal = data.get(x, np.arange(1, len(data[names[0]]) + 1, dtype=float))
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    margin = 0.03 * float(np.nanmax(horizontal) - np.nanmin(horizontal)) or 0.5
    limits = float(np.nanmin(horizontal)) - margin, float(np.nanmax(horizontal)) + margin
    with new_figure(10, 2.6 * rows + 0.4) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name in zip(panels, names):
            seen = np.isfinite(data[name]) & np.isfinite(horizontal)
            axes.plot(horizontal[seen], data[name][seen], ".-", color=PALETTE[0], linewidth=1.6, markersize=5)
            axes.set_title(name)
            axes.grid(alpha=0.3)
            axes.set(xlabel=x, xlim=limits)  # the same epochs in every panel, also where a value came late
        for axes in panels[len(names) :]:
            axes.remove()
        return save(figure, path)


def _read(path: str | os.PathLike[str]) -> dict[str, list[float]]:
    """Columns of a CSV file as numbers, empty cells as NaN."""
    rows = read_table(path)
    try:
        return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else {})}
    except ValueError as error:
        raise ValueError(f"{path} holds something that is not a number ({error}): keep numeric columns.") from error
