"""What a network found, beside what was drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anatomy_ssl.figures.canvas import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_segmentation"]


def draw_segmentation(
    figure: Figure,
    image: np.ndarray,
    truth: np.ndarray,
    found: np.ndarray,
    classes: Sequence[str],
    spacing: Sequence[float],
    title: str = "",
) -> None:
    """Draw true and found classes over an image: two rows, and a column for each plane.

    Each plane is the one that shows most of what is true, or, where there is nothing, the middle one.

    Args:
        figure: to draw into.
        image: `(*spatial)`, 3D with the axes R, A, S, or 2D, whose axes are shown as they come, the last one upwards.
        truth: `(*spatial)` class numbers from 1, 0 for none.
        found: likewise.
        classes: names of 1, 2, ...
        spacing: mm between voxels along each axis.
        title: of the figure.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    dims = image.ndim
    colours = [PALETTE[k % len(PALETTE)] for k in range(len(classes))]
    normals: list[int | None] = [2, 1, 0] if dims == 3 else [None]
    axes = figure.subplots(2, len(normals), squeeze=False)
    for column, normal in enumerate(normals):
        where: list[slice | int] = [slice(None)] * dims
        if normal is not None:
            counts = (truth > 0).sum(axis=tuple(a for a in range(dims) if a != normal))
            where[normal] = int(counts.argmax()) if counts.any() else image.shape[normal] // 2
        across, up = [a for a in range(dims) if a != normal]
        for row, (name, labels) in enumerate((("true", truth), ("found", found))):
            ax = axes[row, column]
            aspect = spacing[up] / spacing[across]
            ax.imshow(image[tuple(where)].T, cmap="gray", origin="lower", aspect=aspect)
            shown = np.ma.masked_equal(labels[tuple(where)].T, 0)
            ax.imshow(
                *(shown, ListedColormap(colours)),
                vmin=1,
                vmax=max(2, len(classes)),
                alpha=0.6,
                origin="lower",
                aspect=aspect,
                interpolation="nearest",
            )
            ax.set(xticks=[], yticks=[], ylabel=name if column == 0 else "")
            if dims == 3:  # as radiologists look: the patient's right, or front, on the left
                ax.invert_xaxis()
                ax.set_xlabel("R – L" if across == 0 else "A – P")
    patches = [Patch(color=colour, label=name) for colour, name in zip(colours, classes)]
    figure.legend(handles=patches, loc="outside lower center", ncols=4)
    figure.suptitle(title)
