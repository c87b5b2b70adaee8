"""Drawing smooth implicit shapes into a CT: the canvas, distances to simple solids, and tables over the body axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

Array = NDArray[np.float32]
Window = tuple[slice, ...]
Triple = tuple[float, float, float]
Place = Sequence[float] | NDArray[np.float64]
Trio = tuple[Array, Array, Array]

AIR = -1000.0
CORTEX = 1.8  # mm


class Profile:
    """A smooth function of the cranio-caudal atlas coordinate, by table look-up.

    Args:
        knots: (z in mm, value) pairs in descending z; monotone cubic between them, constant beyond them.
    """

    start, step, count = -520.0, 0.25, 3200

    def __init__(self, knots: Sequence[tuple[float, float]]) -> None:
        z, value = np.array(knots[::-1], dtype=float).T
        grid = np.clip(self.start + self.step * np.arange(self.count), z[0], z[-1])
        self.table = PchipInterpolator(z, value)(grid).astype(np.float32)

    def __call__(self, z: Array) -> Array:
        index = ((z - np.float32(self.start)) * np.float32(1 / self.step)).astype(np.int32)
        return self.table[np.clip(index, 0, self.count - 1, out=index)]


class Canvas:
    """Voxels that know their atlas position, painted from back to front.

    A voxel across a boundary takes both tissues in proportion (a ramp `edge` mm wide), as a scanner's partial volume
    does; its label is the organ that holds its centre.

    Args:
        x, y, z: atlas coordinates of the voxel centres in mm, float32 of one 3-D shape. Any arrangement is allowed:
            a grid, or points as `(N, 1, 1)`.
        edge: width in mm of the ramp at a boundary.
    """

    def __init__(self, x: Array, y: Array, z: Array, edge: float) -> None:
        self.coordinates = (x, y, z)
        self.edge = edge
        self.hu: Array = np.full(x.shape, AIR, np.float32)
        self.label: NDArray[np.uint8] = np.zeros(x.shape, np.uint8)
        others = ((1, 2), (0, 2), (0, 1))
        self._low = [np.stack([c.min(axis=o) for c in self.coordinates]) for o in others]
        self._high = [np.stack([c.max(axis=o) for c in self.coordinates]) for o in others]

    def window(self, low: Place, high: Place) -> Window | None:
        """Smallest block of voxels round the atlas box `low`..`high` (mm) and its ramp; None where there is none."""
        bottom = np.asarray(low, np.float32)[:, None] - self.edge
        top = np.asarray(high, np.float32)[:, None] + self.edge
        slices = []
        for low_profile, high_profile in zip(self._low, self._high):
            inside = np.flatnonzero(((high_profile >= bottom) & (low_profile <= top)).all(axis=0))
            if inside.size == 0:
                return None
            slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
        return tuple(slices)

    def at(self, window: Window) -> Trio:
        """Atlas x, y, z (mm) of the voxels of a window, as views."""
        x, y, z = self.coordinates
        return x[window], y[window], z[window]

    def paint(
        self, window: Window, distance: Array, hu: float | Array, label: int | None = None, within: int | None = None
    ) -> None:
        """Paint a solid into the voxels of `window`.

        Args:
            window: from `window`.
            distance: signed distance to the solid's surface for these voxels, mm, negative inside.
            hu: HU, one or per voxel.
            label: label to set, or None to leave labels as they are.
            within: paint only voxels that bear this label.
        """
        cover = np.clip(0.5 - distance * np.float32(1 / self.edge), 0, 1)
        if within is not None:
            cover *= self.label[window] == within
        block = self.hu[window]
        block += cover * (hu - block)
        if label is not None:
            self.label[window][distance < 0] = label

    def tube(
        self,
        points: NDArray[np.float64],
        radii: NDArray[np.float64],
        hu: float,
        label: int | None = None,
        within: int | None = None,
        marrow: float | None = None,
        flat: float = 1.0,
    ) -> None:
        """Paint a tube along a polyline, segment by segment; its marrow, if any, after all of its cortex.

        Args:
            points: `(P, 3)` atlas mm.
            radii: `(P,)` mm.
            hu: HU of the tube, or of its cortex where `marrow` is given.
            label, within: as in `paint`.
            marrow: HU of the core.
            flat: below 1 the section is taller than wide (a rib): distances along z count this much.
        """
        for start, end, r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:]):
            margin = max(r0, r1) / flat
            window = self.window(np.minimum(start, end) - margin, np.maximum(start, end) + margin)
            if window is None:
                continue
            self.paint(window, capsule(*self.at(window), start, end, r0, r1, flat), hu, label, within)
        if marrow is not None:
            self.tube(points, radii - CORTEX, marrow, flat=flat)


def capsule(
    x: Array,
    y: Array,
    z: Array,
    start: Place,
    end: Place,
    r0: float,
    r1: float,
    flat: float = 1.0,
) -> Array:
    """Signed distance (mm) to a round stick from `start` to `end` with end radii `r0`, `r1`."""
    scale = np.array([1, 1, flat])
    a = (np.asarray(start) * scale).astype(np.float32)
    along = (np.asarray(end) * scale).astype(np.float32) - a
    px, py, pz = x - a[0], y - a[1], z * np.float32(flat) - a[2]
    t = (px * along[0] + py * along[1] + pz * along[2]) / max(float(along @ along), 1e-6)
    np.clip(t, 0, 1, out=t)
    px -= t * along[0]
    py -= t * along[1]
    pz -= t * along[2]
    return np.sqrt(px * px + py * py + pz * pz) - (np.float32(r0) + t * np.float32(r1 - r0))


def chain(x: Array, y: Array, z: Array, points: NDArray[np.float64], radii: NDArray[np.float64]) -> Array:
    """Signed distance (mm) to the union of the sticks along a polyline `(P, 3)`."""
    parts = [capsule(x, y, z, *pair) for pair in zip(points[:-1], points[1:], radii[:-1], radii[1:])]
    return np.minimum.reduce(parts)


def ellipsoid(
    x: Array, y: Array, z: Array, centre: Triple, radii: Triple, axes: NDArray[np.float64] | None = None
) -> Array:
    """Approximate signed distance (mm, exact on the surface) to an ellipsoid; `axes` holds its unit axes as rows."""
    px, py, pz = (c - np.float32(o) for c, o in zip((x, y, z), centre))
    if axes is not None:
        m = axes.astype(np.float32)
        px, py, pz = (m[i, 0] * px + m[i, 1] * py + m[i, 2] * pz for i in range(3))
    r = np.asarray(radii, np.float32)
    gauge = np.sqrt((px / r[0]) ** 2 + (py / r[1]) ** 2 + (pz / r[2]) ** 2)
    length = np.sqrt(px * px + py * py + pz * pz)
    return (gauge - 1) * (length + 1e-3) / (gauge + 1e-3 / r.max())


def blend(first: Array, second: Array, width: float) -> Array:
    """Union of two solids with a fillet about `width` mm wide (polynomial smooth minimum)."""
    gap = np.maximum(width - np.abs(first - second), 0)
    return np.minimum(first, second) - gap * gap * np.float32(0.25 / width)


def carve(first: Array, second: Array, width: float) -> Array:
    """Intersection of two solids with an edge rounded over about `width` mm."""
    return -blend(-first, -second, width)


def section_gauge(u: Array, v: Array) -> Array:
    """Gauge of the trunk's cross-section, between an ellipse and a rounded box: 1 on its outline, linear along rays."""
    u, v = u * u, v * v
    return np.float32(0.6) * np.sqrt(u + v) + np.float32(0.4) * np.sqrt(np.sqrt(u * u + v * v))


def section(x: Array, y: Array, z: Array, width: Profile, depth: Profile, centre: Profile) -> Array:
    """Signed radial distance (mm, in the axial plane) to a trunk-like solid given by its tables over z."""
    across = y - centre(z)
    gauge = section_gauge(x / width(z), across / depth(z))
    return (gauge - 1) * (np.sqrt(x * x + across * across) + np.float32(1e-2)) / (gauge + np.float32(1e-4))


def smooth_path(
    points: Sequence[Triple], radii: Sequence[float], per_segment: int = 3
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A spline through control points and radii: `(P, 3)` points and `(P,)` radii, mm."""
    knots = np.arange(len(points), dtype=float)
    fine = np.linspace(0, len(points) - 1, per_segment * (len(points) - 1) + 1)
    return CubicSpline(knots, np.array(points, dtype=float))(fine), np.interp(fine, knots, radii)
