"""Points in one radiograph and what was found for them in others."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from anatomy_ssl.figures.canvas import new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "correspondence_figure", "show"]

_FOUND, _TRUE = "#E69F00", "#56B4E9"


@dataclass(frozen=True, eq=False)
class Picture:
    """A radiograph in its own pixels.

    Args:
        image: `(rows, columns)` grey, from dark to bright.
        affine: `(3, 3)` from the index in `image` to (row, column) in pixels of the file.
        size: rows and columns of the file.
        title: over the picture.
    """

    image: np.ndarray
    affine: np.ndarray
    size: np.ndarray
    title: str


def show(axes: Any, values: np.ndarray, affine: np.ndarray, **kwargs: Any) -> Any:
    """Draw an array `(rows, columns[, 3])` where its affine places it, in pixels of the file."""
    top, left = (affine @ [-0.5, -0.5, 1])[:2]
    bottom, right = (affine @ [values.shape[0] - 0.5, values.shape[1] - 0.5, 1])[:2]
    return axes.imshow(values, extent=(left, right, bottom, top), **kwargs)


def draw_picture(axes: Any, picture: Picture) -> None:
    """The radiograph alone, all of the file and nothing more, without ticks."""
    show(axes, picture.image, picture.affine, cmap="gray", interpolation="bilinear")
    axes.set(xlim=(-0.5, picture.size[1] - 0.5), ylim=(picture.size[0] - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def correspondence_figure(
    pictures: Sequence[Picture],
    query: np.ndarray,
    matches: Mapping[str, Sequence[np.ndarray]],
    truth: Sequence[np.ndarray] | None,
    similarity: Mapping[int, Sequence[tuple[np.ndarray, np.ndarray]]],
    path: str | os.PathLike[str],
    names: Sequence[str] = (),
) -> Path:
    """Numbered points in the first radiograph, their matches in the others, and maps of where else would fit.

    Args:
        pictures: A, then B1 ... Bn.
        query: `(N, 2)` points in A, (row, column) in pixels.
        matches: method -> for each of B1 ... Bn the matches `(N, 2)`; one row of the figure each.
        truth: for each of B1 ... Bn the true places `(N, 2)`, NaN where unknown; None draws none.
        similarity: number of a point (from 0) -> for each picture the cosine `(rows, columns)` with that point, and the
            affine of that map; one row of the figure each, of the first method.
        path: the picture to write.
        names: of the points, where they have names.
    """
    from matplotlib.cm import ScalarMappable

    rows, columns = len(matches) + len(similarity), len(pictures)
    height = float(np.mean([p.size[0] / p.size[1] for p in pictures]))
    width = 2.9
    with new_figure(width * columns + (1.1 if similarity else 0.3), (width * height + 0.08) * rows + 1.3) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes, picture in zip(panels.flat, list(pictures) * rows):
            draw_picture(axes, picture)
        for axes, picture in zip(panels[0], pictures):
            axes.set_title(picture.title)
        for line, (method, found) in zip(panels, matches.items()):
            line[0].set_ylabel(method)
            _points(line[0], query, _FOUND)
            for k, axes in enumerate(line[1:]):
                if truth is not None:
                    _errors(axes, found[k], truth[k])
                _points(axes, found[k], _FOUND)
        for line, (number, maps) in zip(panels[len(matches) :], similarity.items()):
            line[0].set_ylabel(f"like point {number + 1}")
            best = next(iter(matches.values()))
            for k, (axes, (values, affine)) in enumerate(zip(line, maps)):
                heat = {"cmap": "inferno", "vmin": 0, "vmax": 1, "interpolation": "bilinear"}
                drawn = show(axes, values, affine, alpha=0.7 * values.clip(0, 1), **heat)
                _points(axes, (query if k == 0 else best[k - 1])[[number]], _FOUND, number)
            figure.colorbar(ScalarMappable(drawn.norm, drawn.cmap), ax=list(line), shrink=0.8, pad=0.01, label="cosine")
        _legend(figure, truth is not None, names, columns)
        return save(figure, path)


def _points(axes: Any, points: np.ndarray, colour: str, first: int = 0) -> None:
    """Discs with their numbers, from 1."""
    for number, (row, column) in enumerate(points, start=first + 1):
        box = {"boxstyle": "circle,pad=0.18", "fc": colour, "ec": "black", "lw": 0.6, "alpha": 0.9}
        axes.text(column, row, str(number), ha="center", va="center", fontsize=8, bbox=box, clip_on=True)


def _errors(axes: Any, found: np.ndarray, truth: np.ndarray) -> None:
    """Crosses at the true places, and lines from them to the matches."""
    axes.plot([found[:, 1], truth[:, 1]], [found[:, 0], truth[:, 0]], color=_TRUE, lw=1.3)
    axes.plot(truth[:, 1], truth[:, 0], "+", color=_TRUE, ms=9, mew=2)


def _legend(figure: Figure, with_truth: bool, names: Sequence[str], columns: int) -> None:
    """What the marks are, under the names of the points."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker="o", ls="", mfc=_FOUND, mec="black", ms=10, label="query (left), best match")]
    if with_truth:
        marks.append(Line2D([], [], marker="+", color=_TRUE, ms=11, mew=2.5, label="true place"))
    listed = [f"{number} {name}" for number, name in enumerate(names, start=1)]
    title = ",   ".join(re.sub("[_ ]", "\N{NO-BREAK SPACE}", text) for text in listed)
    figure.legend(handles=marks, loc="outside lower center", ncols=2, title="\n".join(wrap(title, 28 * columns)))
