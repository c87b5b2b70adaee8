"""Bodies drawn from a formula, and the same bodies warped, so that it is known where each point went."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

ORIENTATIONS = [
    np.array(list(zip(axes, flips)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1.0, -1.0), repeat=3)
]
SHAPE = (40, 32, 44)
AFFINE = nib.affines.from_matvec(np.diag([5.0, 5.0, 5.0]), [-100.0, -80.0, -110.0])

Warp = Callable[[np.ndarray], np.ndarray]


def intensity(x: np.ndarray) -> np.ndarray:
    """A body `(..., 3)` mm -> `(...)`: an ellipsoid with organs that no symmetry confuses."""

    def ball(centre: list[float], radii: list[float]) -> np.ndarray:
        return 1 / (1 + np.exp(6 * (np.sqrt((((x - centre) / radii) ** 2).sum(-1)) - 1)))

    body = 1000 * ball([0, 0, 0], [75, 55, 95])
    lungs = -700 * ball([35, 0, 40], [22, 26, 32]) - 600 * ball([-35, 5, 35], [20, 24, 28])
    bones = 700 * ball([0, -38, 0], [10, 10, 85]) + 500 * ball([20, 10, -70], [22, 16, 12])
    organs = 250 * ball([-30, 10, -20], [25, 25, 20]) + 350 * ball([28, -5, -30], [14, 12, 14])
    return body + lungs + bones + organs


def write_body(
    path: Path, inverse: Warp | None = None, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE
) -> dict[str, str]:
    """Write a body as NIfTI, of which `inverse` says what lies at each place; returns its item."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    places = nib.affines.apply_affine(affine, index)
    values = intensity(places if inverse is None else inverse(places))
    noise = np.random.default_rng(0).normal(0, 15, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image((values + noise).astype(np.int16), affine), path)
    return {"image": str(path), "subject": path.name.split(".")[0]}


def stored_as(item: dict[str, str], orientation: np.ndarray, path: Path) -> dict[str, str]:
    """The same volume with its axes swapped and flipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.load(item["image"]).as_reoriented(orientation), path)
    return {**item, "image": str(path)}
