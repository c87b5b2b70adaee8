"""Chest radiographs of the phantom: attenuation integrated from front to back, with masks and points in the picture.

The beam is parallel to the subject's front-back axis (a source far away, no magnification). The picture is shown the
way readers see it: the patient's right on the left, the head up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_opening, gaussian_filter, zoom

from anatomy_ssl.data.phantom_anatomy import paint_subject
from anatomy_ssl.data.phantom_canvas import Canvas
from anatomy_ssl.data.phantom_labels import LABELS
from anatomy_ssl.data.phantom_lesions import Lesion, paint_lesions
from anatomy_ssl.data.phantom_subject import Points, Subject

WATER = 0.0205  # attenuation of water per mm, for a beam of about 65 keV
DETECTOR = 380.0  # side of the square detector, mm
PITCH, DEPTH_STEP, DEPTH, EDGE = 2.0, 5.0, 290.0, 2.8  # of the volume that is integrated, mm
LUNGS = ("lung_right", "lung_left")
HIDING = ("heart", "aorta", "liver", "spleen", "stomach", "bowel", "spine")
QUANTA, DETAIL = 6e4, 0.9  # photons a pixel without a patient; gain of local over wide contrast
LUNG_DEPTH = 12.0  # mm of lung beyond what hides it


@dataclass(frozen=True)
class Radiograph:
    """A radiograph and what is known about it.

    Attributes:
        image: 8-bit grey `(size, size)`, dense tissue bright.
        lungs: bool `(size, size)`: the lung fields, free of heart, spine and what lies under the diaphragm.
        heart: bool `(size, size)`: the whole of its shadow, under the diaphragm too.
        clavicles: bool `(size, size)`: both; they lie over the lungs.
        spacing: side of a pixel in mm.
        corner: subject x and z (mm) of the centre of pixel (row 0, column 0).
    """

    image: NDArray[np.uint8]
    lungs: NDArray[np.bool_]
    heart: NDArray[np.bool_]
    clavicles: NDArray[np.bool_]
    spacing: float
    corner: tuple[float, float]

    def project(self, points: Points) -> NDArray[np.float64]:
        """Column and row `(N, 2)`, in pixels from the first pixel's centre, of subject points `(N, 3)` in mm."""
        column = (self.corner[0] - points[:, 0]) / self.spacing
        row = (self.corner[1] - points[:, 2]) / self.spacing
        return np.stack([column, row], axis=1)


def attenuation(hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Linear attenuation per mm; bone's calcium stops more than its HU, measured at a harder beam, tells."""
    return np.float32(WATER) * np.maximum(1 + hu / 1000 + 2.2 * np.maximum(hu - 130, 0) / 1000, 0).astype(np.float32)


def project_subject(subject: Subject, lesions: Sequence[Lesion] = (), size: int = 512) -> Radiograph:
    """Take a standing subject's postero-anterior radiograph, `size` by `size` pixels over 380 mm."""
    rng = subject.stream(4)
    centre, top = rng.normal(0, 5), 122 * subject.warp.scale[2] + rng.normal(0, 6)
    count = round(DETECTOR / PITCH)
    affine = np.diag([-PITCH, DEPTH_STEP, -PITCH, 1.0])
    affine[:3, 3] = centre + (DETECTOR - PITCH) / 2, -DEPTH / 2, top
    grid = subject.warp.grid(affine, (count, round(DEPTH / DEPTH_STEP), count))
    canvas = paint_subject(Canvas(*grid, edge=EDGE), subject, up=(0, 0, 1))
    paint_lesions(canvas, subject, list(lesions))
    path = _enlarge(attenuation(canvas.hu).sum(axis=1).T * DEPTH_STEP, size, 3)
    # Opening drops slits between organs, through which the recess behind the diaphragm shows.
    fields = binary_opening(_length(canvas, LUNGS) - _length(canvas, HIDING) > LUNG_DEPTH, iterations=4)
    masks = [fields, *(_length(canvas, [organ]) > 0 for organ in ("heart", "clavicles"))]
    lungs, heart, clavicles = (_enlarge(mask.astype(np.float32), size, 1) > 0.5 for mask in masks)
    spacing = DETECTOR / size
    corner = (centre + (DETECTOR - spacing) / 2, top + (PITCH - spacing) / 2)
    return Radiograph(_develop(path, rng), lungs, heart, clavicles, spacing, corner)


def _length(canvas: Canvas, organs: Sequence[str]) -> NDArray[np.float32]:
    """How much of each ray lies in the given organs, mm, `(rows, columns)`."""
    chosen = np.isin(np.arange(256), [LABELS[organ] for organ in organs])
    return (chosen[canvas.label].sum(axis=1).T * DEPTH_STEP).astype(np.float32)


def _enlarge(image: NDArray[np.float32], size: int, order: int) -> NDArray[np.float32]:
    return zoom(image, size / image.shape[0], order=order, grid_mode=True, mode="nearest")


def _develop(path: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Detector counts from path integrals (Beer-Lambert, scatter, quanta), then log, local contrast and window."""
    blur = 0.066 * path.shape[0]
    primary = np.exp(-path)
    expected = QUANTA * (primary + 0.5 * gaussian_filter(primary, blur) + 0.002)
    counts = expected + np.sqrt(expected) * rng.normal(size=path.shape)
    density = -np.log(np.maximum(counts, 1) / QUANTA)
    body = (path > 0.3).astype(np.float32)
    around = gaussian_filter(density * body, blur) / (gaussian_filter(body, blur) + 1e-3)
    density += DETAIL * (density - around) * body
    low, high = np.percentile(density[body > 0], (2, 99.7))
    grey = np.clip((density - low) / (high - low), 0, 1) ** 1.25
    return np.round(255 * grey).astype(np.uint8)
