"""Axial, coronal and sagittal slices of a volume through a point, as radiologists look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd

__all__ = ["ENDS", "VIEWS", "Upright", "draw_slices"]

# name, the axis across, and the axes drawn to the right and upwards
VIEWS = (("axial", 2, 0, 1), ("coronal", 1, 0, 2), ("sagittal", 0, 1, 2))
ENDS = (("L", "R"), ("P", "A"), ("I", "S"))


class Upright:
    """A volume with axes near right, anterior and superior, and where world points lie in it.

    Args:
        volume: `(C, *spatial)` with affine, three spatial axes, stored in any orientation; the first channel counts.

    Raises:
        ValueError: it has not three axes.
    """

    def __init__(self, volume: MetaTensor) -> None:
        if volume.ndim != 4:
            raise ValueError(f"pictures are drawn of volumes (C, x, y, z), got {tuple(volume.shape)}")
        matrix = to_affine_nd(3, volume.affine).numpy().astype(np.float64)
        orientation = nib.io_orientation(matrix)
        values = volume.as_tensor()[0].float().cpu().numpy()
        self.affine = matrix @ nib.orientations.inv_ornt_aff(orientation, values.shape)
        self.values = nib.apply_orientation(values, orientation)
        self.spacing = nib.affines.voxel_sizes(self.affine)
        self.size = np.array(self.values.shape) * self.spacing

    def index(self, point: Sequence[float] | np.ndarray) -> np.ndarray:
        """Voxel coordinates `(3,)` of a point in world mm."""
        return nib.affines.apply_affine(np.linalg.inv(self.affine), np.asarray(point, dtype=np.float64))

    def place(self, point: Sequence[float] | np.ndarray) -> np.ndarray:
        """Mm `(3,)` from the outer corner of the first voxel along the volume's axes."""
        return (self.index(point) + 0.5) * self.spacing

    def slice(self, across: int, point: Sequence[float] | np.ndarray) -> np.ndarray:
        """The slice through a point, or the nearest one that there is."""
        level = int(np.clip(np.round(self.index(point)[across]), 0, self.values.shape[across] - 1))
        return self.values.take(level, axis=across)


def draw_slices(
    panels: Sequence[Any], volume: Upright, point: Sequence[float] | np.ndarray, window: tuple[float, float]
) -> None:
    """Draw the three slices through a point, one millimetre equally long everywhere; axes are in mm, see `place`.

    Args:
        panels: three axes of a figure.
        volume: what is drawn.
        point: world mm `(3,)`.
        window: intensities from black to white.
    """
    for axes, (name, across, right, up) in zip(panels, VIEWS):
        extent = (0, volume.size[right], 0, volume.size[up])
        grey = {"cmap": "gray", "vmin": window[0], "vmax": window[1], "interpolation": "bilinear"}
        axes.imshow(volume.slice(across, point).T, origin="lower", extent=extent, aspect="equal", **grey)
        axes.set(xticks=[], yticks=[], title=name, xlim=extent[:2], ylim=extent[2:])
        axes.invert_xaxis()  # the radiologist's view
        axes.set_xlabel(f"{ENDS[right][1]}  –  {ENDS[right][0]}")
        for spine in axes.spines.values():
            spine.set_visible(False)
