"""Where sampled crops lie: their outlines on three views of the volume that they were taken from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import nibabel as nib
import numpy as np
from monai.data.utils import to_affine_nd
from monai.utils import convert_to_numpy

from anatomy_ssl.figures.canvas import new_figure, save

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

Projection = Literal["slice", "max", "mean"]
# Name, the projected axis, and the axes drawn to the right and upwards of each view of a volume in RAS+ order.
_VIEWS = (("axial", 2, 0, 1), ("coronal", 1, 0, 2), ("sagittal", 0, 1, 2))
_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))


def crop_overview(
    volume: np.ndarray | torch.Tensor,
    centres: np.ndarray | torch.Tensor,
    roi_size_mm: Sequence[float],
    path: str | os.PathLike[str],
    affine: np.ndarray | torch.Tensor | None = None,
    projection: Projection = "slice",
    title: str = "",
) -> Path:
    """Axial, coronal and sagittal view of a volume with the crops as boxes; the same crop has the same colour in all.

    A radiograph (2D) gives one panel. The views have the aspect ratio of the body: one millimetre is equally long along
    every axis, whatever the spacing. Volumes in any orientation are shown upright as radiologists do: the patient's
    right and front are on the left. Crops that the drawn slice does not meet are dotted.

    Args:
        volume: `(H, W, D)` or `(H, W)` voxels, with or without a channel in front, of which the first is drawn.
        centres: `(N, 3)` or `(N, 2)` crop centres in world mm, RAS+.
        roi_size_mm: edge lengths of the crops in mm along the axes of the array.
        path: the picture to write.
        affine: voxel index to world mm; None takes that of the volume, which must then be a MetaTensor.
        projection: slice through the median of the centres, or maximum or mean over the whole volume.
        title: over the panels.

    Raises:
        ValueError: shapes do not fit, or there is no affine.
    """
    with new_figure(10, 4.5) as figure:
        _draw(figure, volume, centres, roi_size_mm, affine, projection, title)
        return save(figure, path)


def crop_overview_image(
    volume: np.ndarray | torch.Tensor,
    centres: np.ndarray | torch.Tensor,
    roi_size_mm: Sequence[float],
    affine: np.ndarray | torch.Tensor | None = None,
    projection: Projection = "slice",
    title: str = "",
) -> np.ndarray:
    """As `crop_overview`, but returns the picture: uint8 RGB `(height, width, 3)`, as TensorBoard takes it."""
    with new_figure(10, 4.5) as figure:
        _draw(figure, volume, centres, roi_size_mm, affine, projection, title)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


def _draw(
    figure: Figure,
    volume: np.ndarray | torch.Tensor,
    centres: np.ndarray | torch.Tensor,
    roi_size_mm: Sequence[float],
    affine: np.ndarray | torch.Tensor | None,
    projection: Projection,
    title: str,
) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    voxels, spacing, points, roi = _upright(volume, affine, convert_to_numpy(centres), roi_size_mm)
    size = np.array(voxels.shape) * spacing
    height = points[:, -1]
    colours = colormaps["plasma"](0.25 + 0.7 * (height - height.min()) / max(float(np.ptp(height)), 1e-6))
    views = _VIEWS if voxels.ndim == 3 else (("", None, 0, 1),)
    planes = [_flatten(voxels, across, projection, points, spacing, roi) for _, across, _, _ in views]
    low, high = np.percentile(np.concatenate([plane.ravel() for plane, _ in planes]), [1, 99.5])
    widths, tallest = [size[right] for _, _, right, _ in views], max(size[up] for *_, up in views)
    inches = 10 if len(views) > 1 else 6
    figure.set_size_inches(inches, float(np.clip(inches * tallest / sum(widths) + 0.9, 3, 12)))
    panels = figure.subplots(1, len(views), squeeze=False, width_ratios=widths)[0]
    for axes, (name, _, right, up), (plane, met) in zip(panels, views, planes):
        extent = (0, size[right], 0, size[up])
        axes.imshow(plane.T, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent, interpolation="nearest")
        for point, colour, solid in zip(points, colours, met):
            corner = (point[right] - roi[right] / 2, point[up] - roi[up] / 2)
            style = {"edgecolor": colour, "linewidth": 1.2, "linestyle": "-" if solid else ":"}
            axes.add_patch(Rectangle(corner, roi[right], roi[up], fill=False, **style))
            axes.plot(point[right], point[up], ".", color=colour, markersize=4)
        axes.set(xticks=[], yticks=[], title=name, xlim=extent[:2], ylim=extent[2:])
        if voxels.ndim == 3:
            axes.invert_xaxis()  # the radiologist's view
            axes.set_xlabel(f"{_ENDS[right][1]}  –  {_ENDS[right][0]}")
            axes.set_ylabel(f"{_ENDS[up][0]}  –  {_ENDS[up][1]}")
        else:
            axes.invert_yaxis()  # rows of a picture go down
    figure.suptitle(title)


def _upright(
    volume: np.ndarray | torch.Tensor,
    affine: np.ndarray | torch.Tensor | None,
    centres: np.ndarray,
    roi_size_mm: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Voxels with axes near right, anterior, superior; their spacing; centres in mm from the corner; roi per axis."""
    if centres.ndim != 2 or not len(centres):
        raise ValueError(f"Centres must be (N, 3) or (N, 2) with at least one crop, got {centres.shape}.")
    dimensions = centres.shape[1]
    affine = getattr(volume, "affine", None) if affine is None else affine
    if affine is None:
        raise ValueError("The volume has no affine: give affine=, or a MetaTensor.")
    voxels = convert_to_numpy(volume)
    voxels = voxels[0] if voxels.ndim == dimensions + 1 else voxels
    if voxels.ndim != dimensions or len(roi_size_mm) != dimensions:
        raise ValueError(
            f"Centres in {dimensions}D do not fit {voxels.shape} voxels and a roi of {len(roi_size_mm)} edges."
        )
    matrix = to_affine_nd(dimensions, convert_to_numpy(affine, dtype=np.float64))
    roi = np.asarray(roi_size_mm, dtype=float)
    if dimensions == 3:
        orientation = nib.io_orientation(matrix)
        matrix = matrix @ nib.orientations.inv_ornt_aff(orientation, voxels.shape)
        voxels = nib.apply_orientation(voxels, orientation)
        roi = roi[np.argsort(orientation[:, 0])]
    spacing = nib.affines.voxel_sizes(matrix)
    index = nib.affines.apply_affine(np.linalg.inv(matrix), centres.astype(np.float64))
    return voxels, spacing, (index + 0.5) * spacing, roi


def _flatten(
    voxels: np.ndarray,
    across: int | None,
    projection: Projection,
    points: np.ndarray,
    spacing: np.ndarray,
    roi: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The plane to draw, and for each crop whether it meets that plane."""
    if across is None:
        return voxels, np.ones(len(points), dtype=bool)
    if projection in ("max", "mean"):
        return getattr(voxels, projection)(axis=across), np.ones(len(points), dtype=bool)
    if projection != "slice":
        raise ValueError(f"projection must be slice, max or mean, got {projection}.")
    depth = float(np.median(points[:, across]))
    level = int(np.clip(depth / spacing[across], 0, voxels.shape[across] - 1))
    return voxels.take(level, axis=across), np.abs(points[:, across] - depth) <= roi[across] / 2
