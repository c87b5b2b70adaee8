"""A point in one volume beside its match in another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.data import MetaTensor

from anatomy_ssl.figures.canvas import PALETTE, new_figure, save
from anatomy_ssl.figures.planes import VIEWS, Upright, draw_slices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_cross", "match_figure", "three_views", "window_of"]

FOUND, TRUE = PALETTE[5], PALETTE[4]
_WIDTH = 9.0  # inches
Point = Sequence[float] | np.ndarray


def match_figure(
    source: MetaTensor,
    target: MetaTensor,
    query: Point,
    match: Point,
    path: str | os.PathLike[str],
    names: Sequence[str] = ("source", "target"),
    title: str = "",
    truth: Point | None = None,
) -> Path:
    """The three slices through a query, and below them the three through its match.

    Args:
        source: `(1, *spatial)` with affine, stored in any orientation.
        target: likewise.
        query: world mm `(3,)` in the source.
        match: world mm `(3,)` in the target.
        path: the picture to write.
        names: of the two, on the left.
        title: over all.
        truth: world mm `(3,)` in the target, where it is known: drawn into the match's slices.
    """
    volumes = Upright(source), Upright(target)
    window = window_of(volumes)
    with new_figure(_WIDTH, 5.0) as figure:
        rows = three_views(figure, volumes)
        for panels, volume, point, name in zip(rows, volumes, (query, match), names):
            draw_slices(panels, volume, point, window)
            draw_cross(panels, volume, point, FOUND)
            panels[0].set_ylabel(name)
        if truth is not None:
            draw_cross(rows[1], volumes[1], truth, TRUE)
        figure.suptitle(title)
        return save(figure, path)


def three_views(figure: Figure, volumes: Sequence[Upright]) -> np.ndarray:
    """Axes `(rows, 3)`, one row for each volume, as wide and as high as the largest one's slices; sizes the figure."""
    size = np.max([volume.size for volume in volumes], axis=0)
    widths = [size[right] for _, _, right, _ in VIEWS]
    tallest = max(size[up] for *_, up in VIEWS)
    height = float(np.clip(len(volumes) * (_WIDTH * tallest / sum(widths) + 0.5) + 0.5, 3, 14))
    figure.set_size_inches(_WIDTH, height)
    return figure.subplots(len(volumes), 3, squeeze=False, width_ratios=widths)


def draw_cross(panels: Sequence[Any], volume: Upright, point: Point, colour: str) -> None:
    """Mark a point in world mm in the three slices, open in the middle so that what is there can be seen."""
    place = volume.place(point)
    for axes, (_, _, right, up) in zip(panels, VIEWS):
        x, y = place[right], place[up]
        gap, length = 0.02 * volume.size.max(), 0.06 * volume.size.max()
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            ends = [x + gap * dx, x + length * dx], [y + gap * dy, y + length * dy]
            axes.plot(*ends, color=colour, lw=1.6)


def window_of(volumes: Sequence[Upright]) -> tuple[float, float]:
    """Intensities from black to white that fit both."""
    low, high = np.percentile(np.concatenate([volume.values.ravel()[::7] for volume in volumes]), [1, 99.5])
    return float(low), float(max(high, low + 1e-6))
