"""Views on a grid of cells side by side: what a student saw, what it made of it, and what two views share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anatomy_ssl.figures.canvas import PALETTE, new_figure

__all__ = ["grid_view_image"]

_INCHES = 2.3
_EMPTY = (0.23, 0.30, 0.42)


def grid_view_image(
    panels: Mapping[str, np.ndarray],
    grid_size: Sequence[int],
    frames: Mapping[str, np.ndarray] | None = None,
    empty: Mapping[str, np.ndarray] | None = None,
    names: Sequence[str] = (),
    title: str = "",
) -> np.ndarray:
    """Draw a row for each image and a column for each panel; volumes by their middle axial slice, right on the left.

    All panels of a row share the grey scale of the first, so that intensities can be compared.

    Args:
        panels: `(N, *spatial)` images by title, rows before columns in 2D, right-anterior-superior in 3D.
        grid_size: cells along each axis.
        frames: for some panels `(N, *grid)` booleans, cells that are outlined.
        empty: for some panels `(N, *grid)` booleans, cells that show nothing.
        names: of the rows.
        title: over all.

    Returns:
        uint8 RGB `(height, width, 3)`, as TensorBoard takes it.

    Raises:
        ValueError: if there is no panel, or a panel is not of the first's shape or has not two or three axes.
    """
    if not panels:
        raise ValueError("There is nothing to draw: give at least one panel.")
    shape = next(iter(panels.values())).shape
    for name, panel in panels.items():
        if panel.shape != shape or len(shape) != len(grid_size) + 1 or len(grid_size) not in (2, 3):
            raise ValueError(f"The panel {name} is {panel.shape}; all have to be {shape}, with a grid of {grid_size}.")
    rows, columns = shape[0], len(panels)
    tall, wide = _plane(next(iter(panels.values()))[0]).shape
    with new_figure(_INCHES * columns + 0.3, _INCHES * tall / wide * rows + 0.7) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for row in range(rows):
            low, high = np.percentile(next(iter(panels.values()))[row], [0.5, 99.5])
            for column, (name, panel) in enumerate(panels.items()):
                marks = [np.zeros(tuple(grid_size), bool) if m is None else m[row] for m in _of(name, frames, empty)]
                _draw(axes[row, column], _plane(panel[row]), low, high, *[_plane(mark) for mark in marks])
                if row == 0:
                    axes[row, column].set_title(name)
            axes[row, 0].set_ylabel(names[row] if row < len(names) else "")
        figure.suptitle(title)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def _of(name: str, *marks: Mapping[str, np.ndarray] | None) -> list[np.ndarray | None]:
    """A panel's own marks."""
    return [None if mark is None else mark.get(name) for mark in marks]


def _plane(image: np.ndarray) -> np.ndarray:
    """An image or its cells, of a volume the middle slice as radiologists look at it: front up, right on the left."""
    return image if image.ndim == 2 else image[..., image.shape[2] // 2].T[::-1, ::-1]


def _draw(axes: Any, plane: np.ndarray, low: float, high: float, framed: np.ndarray, empty: np.ndarray) -> None:
    """One panel: the image, cells without content in one colour, and the outline of the framed cells."""
    grey = ((plane - low) / max(high - low, 1e-6)).clip(0, 1)
    cell = [length // n for length, n in zip(plane.shape, framed.shape)]
    colour = np.where(np.kron(empty, np.ones(cell, bool))[..., None], _EMPTY, grey[..., None])
    axes.imshow(colour, interpolation="nearest", extent=(0, framed.shape[1], framed.shape[0], 0), aspect="auto")
    padded = np.pad(framed, 1)
    style = {"color": PALETTE[5], "linewidth": 1.6}
    for row, column in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])):
        axes.plot([column, column + 1], [row, row], **style)
    for row, column in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])):
        axes.plot([column, column], [row, row + 1], **style)
    axes.set(xticks=[], yticks=[], xlim=(0, framed.shape[1]), ylim=(framed.shape[0], 0))
    axes.set_box_aspect(plane.shape[0] / plane.shape[1])
