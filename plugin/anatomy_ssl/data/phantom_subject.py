"""Who a phantom subject is: attributes, the smooth map to the atlas, organ positions, pose and field in the scanner."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from anatomy_ssl.data.phantom_canvas import Canvas, Trio, Triple, Window

Points = NDArray[np.float64]

ORGAN_CENTRES: dict[str, Triple] = {
    "heart": (-15, 40, -65),
    "liver": (60, 15, -165),
    "gallbladder": (45, 62, -222),
    "stomach": (-40, 30, -180),
    "spleen": (-99, -24, -152),
    "pancreas": (-20, 15, -205),
    "kidney_left": (-60, -26, -212),
    "kidney_right": (58, -26, -228),
}

WAVES = 10
STEEPEST = 0.6


@dataclass(frozen=True)
class Warp:
    """Subject frame -> atlas frame, mm: `q = p / scale + sum_m amplitude_m cos(k_m . p + phase_m)`.

    Plane waves separate over the axes of any voxel grid, so a whole volume costs one matrix product. The sum of
    |amplitude| |k| is held under 0.6, which keeps the map one to one with an inverse by fixed-point iteration.
    """

    scale: Points
    waves: Points
    amplitudes: Points
    phases: Points

    def grid(self, affine: Points, shape: tuple[int, ...]) -> Trio:
        """Atlas x, y, z (float32 of `shape`, mm) of the voxels of a grid with voxel -> subject `affine`."""
        steps = [np.arange(n, dtype=float) for n in shape]
        turns = self.waves @ affine[:3, :3]
        first, second, third = (np.exp(1j * turns[:, a, None] * steps[a]) for a in range(3))
        plane = (first[:, :, None] * second[:, None, :]).reshape(len(self.phases), -1)
        left = np.concatenate([plane.real, plane.imag]).T.astype(np.float32)
        start = np.exp(1j * (self.phases + self.waves @ affine[:3, 3]))
        atlas = []
        for c in range(3):
            waves = (self.amplitudes[:, c] * start)[:, None] * third
            q = (left @ np.concatenate([waves.real, -waves.imag]).astype(np.float32)).reshape(shape)
            linear = [(affine[c, a] / self.scale[c] * steps[a]).astype(np.float32) for a in range(3)]
            q += (linear[0][:, None] + linear[1])[:, :, None] + linear[2]
            q += np.float32(affine[c, 3] / self.scale[c])
            atlas.append(q)
        return atlas[0], atlas[1], atlas[2]

    def to_atlas(self, points: Points) -> Points:
        """Atlas mm `(N, 3)` of subject points `(N, 3)` in mm."""
        return points / self.scale + np.cos(points @ self.waves.T + self.phases) @ self.amplitudes

    def to_subject(self, atlas: Points) -> Points:
        """Subject mm `(N, 3)` of atlas points `(N, 3)` in mm: the inverse of `to_atlas`, to a nanometre."""
        points = atlas * self.scale
        for _ in range(60):
            points = (atlas - np.cos(points @ self.waves.T + self.phases) @ self.amplitudes) * self.scale
        return points


@dataclass(frozen=True)
class Subject:
    """One phantom subject. Frames, all mm, RAS+: atlas, subject (upright, carina near 0), world (as in the header).

    Attributes:
        index, seed: what the subject is drawn from.
        sex, age, height, weight: F or M, years, cm, kg.
        contrast: whether contrast medium was given.
        fat, bone, noise: subcutaneous fat in mm, relative bone density, noise in HU.
        warp: subject -> atlas.
        organs: shift (mm) and relative size of single organs.
        rotation, translation: subject -> world.
        scan_axes: the scan's axes in the world, in the columns.
        scan_field: low and high corner `(2, 3)` of the scanned box along these axes, mm from `translation`.
    """

    index: int
    seed: int
    sex: str
    age: int
    height: float
    weight: float
    contrast: bool
    fat: float
    bone: float
    noise: float
    warp: Warp
    organs: dict[str, tuple[Points, float]] = field(repr=False)
    rotation: Points = field(repr=False)
    translation: Points = field(repr=False)
    scan_axes: Points = field(repr=False)
    scan_field: Points = field(repr=False)

    @property
    def name(self) -> str:
        """`phantom_007`: the file name's stem."""
        return f"phantom_{self.index:03d}"

    def stream(self, purpose: int) -> np.random.Generator:
        """Random numbers of this subject for one purpose; other purposes and other subjects do not disturb it."""
        return np.random.default_rng([self.seed, self.index, purpose])

    def place(self, organ: str, points: Points) -> Points:
        """Atlas points `(N, 3)` of an organ after this subject's own shift and size of it; most organs have none."""
        if organ not in self.organs:
            return points
        shift, size = self.organs[organ]
        centre = np.array(ORGAN_CENTRES[organ])
        return (points - centre) * size + centre + shift

    def window(self, canvas: Canvas, organ: str, reach: Triple) -> tuple[Window, Trio] | None:
        """Voxels within `reach` mm of an organ's centre, and their positions before `place`; None if none."""
        shift, size = self.organs[organ]
        centre = np.array(ORGAN_CENTRES[organ])
        half = np.array(reach) * size
        window = canvas.window(centre + shift - half, centre + shift + half)
        if window is None:
            return None
        offsets = (centre - (centre + shift) / size).astype(np.float32)
        x, y, z = (c * np.float32(1 / size) + o for c, o in zip(canvas.at(window), offsets))
        return window, (x, y, z)

    def to_world(self, atlas: Points) -> Points:
        """World mm `(N, 3)` of atlas points `(N, 3)`."""
        return self.warp.to_subject(atlas) @ self.rotation.T + self.translation

    def in_field(self, world: Points, margin: float = 0.0) -> NDArray[np.bool_]:
        """Which world points `(N, 3)` lie in the scanned box, at least `margin` mm from its faces, bool `(N,)`."""
        along = (world - self.translation) @ self.scan_axes
        return ((along >= self.scan_field[0] + margin) & (along <= self.scan_field[1] - margin)).all(axis=1)

    def grid_from_world(self, affine: Points) -> Points:
        """The voxel -> subject affine `(4, 4)` of a grid with voxel -> world `affine`."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.rotation, self.translation
        return np.linalg.inv(pose) @ affine


def draw_subject(index: int, seed: int) -> Subject:
    """Draw subject `index` of the cohort `seed`; it does not depend on how many others are drawn."""
    rng = np.random.default_rng([seed, index, 0])
    female = bool(rng.random() < 0.5)
    age = int(rng.integers(25, 86))
    height = float(np.clip(rng.normal(164 if female else 177, 6.5), 148, 198))
    bmi = float(np.clip(rng.lognormal(np.log(25.5), 0.16), 18, 38))
    fat = float(np.clip(3 + (bmi - 18) * (1.5 if female else 1.15), 4, 30))
    warp = _draw_warp(rng, female, height, bmi)
    organs = {name: (rng.normal(0, 2, 3).clip(-4, 4), float(rng.uniform(0.94, 1.06))) for name in ORGAN_CENTRES}
    return Subject(
        index=index,
        seed=seed,
        sex="F" if female else "M",
        age=age,
        height=round(height, 1),
        weight=round(bmi * (height / 100) ** 2, 1),
        contrast=bool(rng.random() < 0.6),
        fat=fat,
        bone=float(np.clip(1.25 - 0.0065 * age + rng.normal(0, 0.08), 0.55, 1.3)),
        noise=float(rng.uniform(9, 20)),
        warp=warp,
        organs=organs,
        rotation=_turn(rng.normal(0, (2.0, 1.5, 2.0))),
        translation=rng.uniform(-180, 180, 3).round(1),
        scan_axes=_turn(rng.normal(0, 4.5, 3)) if rng.random() < 0.4 else np.eye(3),
        scan_field=_draw_field(rng, warp.scale, fat),
    )


def _turn(degrees: Points) -> Points:
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def _draw_field(rng: np.random.Generator, scale: Points, fat: float) -> Points:
    """Field of view round the trunk, from the lower neck to the iliac wings; in some subjects the flanks are cut."""
    side = max(178 + 0.4 * fat, 158 + 1.4 * fat) + 14
    if rng.random() < 0.25:
        side -= rng.uniform(25, 45)
    low = np.array([-side, -116 - 1.2 * fat, rng.uniform(-400, -348)])
    high = np.array([side, 136 + 1.4 * fat, rng.uniform(104, 138)])
    return np.stack([low, high]) * scale + np.stack([rng.uniform(-10, 10, 3)] * 2) * (1, 0, 0)


def _draw_warp(rng: np.random.Generator, female: bool, height: float, bmi: float) -> Warp:
    """Body size by sex, height and mass index, and a random smooth warp of 4.5 mm root mean square an axis."""
    width = (0.94 if female else 1.03) * (1 + 0.005 * (bmi - 25)) * rng.normal(1, 0.025)
    depth = (0.94 if female else 1.02) * (1 + 0.007 * (bmi - 25)) * rng.normal(1, 0.03)
    length = (height / 172) ** 0.9 * rng.normal(1, 0.015)
    direction = rng.normal(size=(WAVES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    waves = direction * (2 * np.pi / rng.uniform(230, 600, (WAVES, 1)))
    amplitudes = rng.normal(0, 4.5 * np.sqrt(2 / WAVES), (WAVES, 3))
    steepness = float((np.linalg.norm(amplitudes, axis=1) * np.linalg.norm(waves, axis=1)).sum())
    amplitudes *= min(1.0, STEEPEST / steepness)
    return Warp(np.array([width, depth, length]), waves, amplitudes, rng.uniform(0, 2 * np.pi, WAVES))
