"""Views side by side: matched ones of two patients, and what was masked, restored and there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anatomy_ssl.figures.canvas import new_figure

__all__ = ["view_rows_image"]

_INCHES = 2.3


def view_rows_image(
    panels: Mapping[str, np.ndarray], names: Sequence[str] = (), title: str = "", at: Sequence[int] | None = None
) -> np.ndarray:
    """Draw a row for each case and a column for each panel.

    Volumes are shown by an axial slice above a coronal one, as radiologists look at them: the patient's right on the
    left, front and head up. All panels of a row share one grey scale.

    Args:
        panels: `(N, *spatial)` images by title: volumes with axes R, A, S, or radiographs with columns before rows.
        names: of the rows.
        title: over all.
        at: the voxel of a volume that the slices go through; None takes the middle.

    Returns:
        uint8 RGB `(height, width, 3)`, as TensorBoard takes it.

    Raises:
        ValueError: if there is no panel, or panels differ in shape, or have not two or three axes beside the rows.
    """
    shapes = {name: panel.shape for name, panel in panels.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) not in (3, 4):
        raise ValueError(f"Panels have to be of one shape, rows of images of two or three axes, not {shapes}.")
    count = len(next(iter(panels.values())))
    voxel = [n // 2 for n in next(iter(panels.values())).shape[1:]] if at is None else at
    tall, wide = _plane(next(iter(panels.values()))[0], voxel).shape
    with new_figure(_INCHES * len(panels) + 0.3, _INCHES * tall / wide * count + 0.7) as figure:
        axes = figure.subplots(count, len(panels), squeeze=False)
        for row in range(count):
            low, high = np.percentile(np.stack([panel[row] for panel in panels.values()]), [0.5, 99.5])
            for column, (name, panel) in enumerate(panels.items()):
                place = axes[row, column]
                place.imshow(_plane(panel[row], voxel), cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
                place.set(xticks=[], yticks=[], title=name if row == 0 else "")
            axes[row, 0].set_ylabel(names[row] if row < len(names) else "")
        figure.suptitle(title)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def _plane(image: np.ndarray, voxel: Sequence[int]) -> np.ndarray:
    """What is drawn of an image: itself with its first axis to the right, or two slices of a volume through a voxel."""
    if image.ndim == 2:
        return image.T
    axial = image[:, :, voxel[2]].T[::-1, ::-1]
    coronal = image[:, voxel[1]].T[::-1, ::-1]
    line = np.full((max(1, len(image) // 64), len(image)), image.max())
    return np.concatenate([axial, line, coronal])
