"""The phantom's chest: diaphragm, lungs with their vessels, heart, airways, oesophagus and great vessels."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from anatomy_ssl.data.phantom_canvas import Array, Canvas, Profile, blend, carve, ellipsoid, smooth_path
from anatomy_ssl.data.phantom_labels import LABELS
from anatomy_ssl.data.phantom_subject import Subject

Segments = list[tuple[NDArray[np.float64], NDArray[np.float64]]]

MEDIASTINUM = Profile([(85, 15), (60, 22), (30, 30), (0, 31), (-40, 30), (-90, 26), (-130, 24), (-200, 26)])
APEX = np.array([-0.70, 0.50, -0.51])  # the heart's long axis points left, to the front and down

BRANCHES = ((0.5, 0.1, 1), (0.9, 0.9, 0.25), (1, -0.5, 0.3), (0.7, 0.75, -0.8), (0.55, -0.45, -1), (0.25, 0.1, -1))

BLOOD = {
    False: {"chambers": 42.0, "myocardium": 46.0, "aorta": 42.0, "veins": 45.0},
    True: {"chambers": 165.0, "myocardium": 105.0, "aorta": 165.0, "veins": 150.0},
}

AORTA = smooth_path(
    [(2, 34, -48), (16, 40, -22), (18, 36, 2), (10, 30, 22), (-6, 22, 32), (-20, 6, 34), (-26, -10, 28),
     (-27, -24, 12), (-27, -29, -12), (-26, -31, -60), (-23, -29, -110), (-15, -20, -160),
     (-8, -8, -205), (-3, 3, -255), (-2, 6, -314)],
    (15, 16, 15, 14, 13.5, 13, 13, 12.5, 12, 12, 11.5, 11, 10, 9, 8.5),
    2,
)  # fmt: skip
TRACHEA = smooth_path([(0, 20, 160), (0, 12, 95), (0, 2, 50), (0, 0, 0)], (8.5, 8.5, 8.5, 8))
BRONCHI = (
    smooth_path([(0, 0, 0), (18, -4, -18), (34, -7, -32), (46, -8, -52)], (7.5, 7, 6, 3.5), 2),
    smooth_path([(0, 0, 0), (-24, -6, -22), (-42, -10, -34), (-52, -14, -56)], (7, 6, 5, 3.5), 2),
)
OESOPHAGUS = smooth_path(
    [(-2, 6, 160), (-3, -3, 95), (-4, -13, 50), (-5, -18, 0), (-4, -20, -50), (-10, -10, -95), (-26, 4, -125)],
    [6.0] * 7,
    2,
)
VESSELS = (
    smooth_path([(24, 28, 46), (26, 26, 10), (26, 26, -36)], (9.5, 10, 10.5)),
    smooth_path([(-30, 26, 60), (0, 29, 46), (24, 28, 42)], (6, 6.5, 7)),
    smooth_path([(30, 18, 140), (32, 12, 90), (25, 26, 46)], (6, 7, 8)),
    smooth_path([(8, 26, 36), (20, 18, 62), (27, 8, 100), (27, 10, 150)], (6, 5.5, 4, 3.5)),
    smooth_path([(-8, 20, 36), (-18, 14, 66), (-25, 8, 100), (-26, 10, 150)], (4.5, 4.5, 4, 3.5)),
    smooth_path([(24, 12, -90), (25, 2, -140), (22, -4, -200), (18, 4, -260), (15, 6, -318)], (11, 11, 11, 10.5, 9)),
    smooth_path([(-10, 44, -42), (-16, 34, -18), (-26, 16, -10), (-48, -4, -22)], (13, 13, 11, 8)),
    smooth_path([(-14, 30, -20), (8, 14, -22), (30, 4, -28), (46, 0, -40)], (10, 9.5, 9, 7)),
)


def diaphragm(x: Array, y: Array) -> Array:
    """Height z (atlas mm) of the diaphragm: two domes, the right one higher, a saddle, deep recesses."""
    across = np.abs(x) - 66
    across = np.where(across > 0, across / 74, across / 150)
    along = y - 28
    along = np.where(along > 0, along / 105, along / 76)
    saddle = 15 * np.exp(-(((x + 14) / 42) ** 2) - ((y - 42) / 46) ** 2)
    return (-95 + 6 * np.tanh(x / 30) - 50 * across**2 - 56 * along**2 - saddle).astype(np.float32)


def paint_chest(canvas: Canvas, subject: Subject, wall: Array, above: Array) -> None:
    """Lungs with their vessels, heart, airways, oesophagus and great vessels; `wall`, `above`: see `_paint_trunk`."""
    hu = BLOOD[subject.contrast]
    window = canvas.window((-150, -100, -215), (150, 125, 88))
    if window is not None:
        x, y, z = canvas.at(window)
        lining = wall[window]
        taper = 1 - 0.75 * np.clip((y - 25) / 55, 0, 1) ** 2 - 0.4 * np.clip((-12 - y) / 22, 0, 1) ** 2
        lung = carve(lining + 1.5, (MEDIASTINUM(z) * taper - np.abs(x)).astype(np.float32), 14)
        lung = carve(lung, 0.75 * (3 - above[window]), 6)
        air = -872 - 0.45 * (y - 10)
        fissure = np.abs(z + 42 - 0.85 * (y + 8)) * 0.75
        air = (air + 90 * np.clip(1 - fissure / 2.2, 0, 1)).astype(np.float32)
        canvas.paint(window, lung, air, LABELS["lung_right"])
        block = canvas.label[window]
        block[(lung < 0) & (x < 0)] = LABELS["lung_left"]
        dome = np.maximum(np.abs(above[window]) - 2.5, lining)
        canvas.paint(window, dome, 48.0, LABELS["muscle"])
    for side, lung_name in ((1, "lung_right"), (-1, "lung_left")):
        for points, radii in lung_vessels(subject, side):
            canvas.tube(points, radii, hu["veins"] * 0.8 + 5, within=LABELS[lung_name])
    _paint_heart(canvas, subject, above)
    for points, radii in VESSELS:
        canvas.tube(points, radii, hu["veins"], LABELS["great_vessels"])
    canvas.tube(*AORTA, hu["aorta"], LABELS["aorta"])
    canvas.tube(*OESOPHAGUS, 38.0, LABELS["oesophagus"])
    for points, radii in (*BRONCHI, TRACHEA):
        canvas.tube(points, radii + 1.5, 35.0)
    for points, radii in (*BRONCHI, TRACHEA):
        canvas.tube(points, radii, -985.0, LABELS["airways"])


def _paint_heart(canvas: Canvas, subject: Subject, above: Array) -> None:
    """Two ventricles along the long axis and both atria in a pericardium; chambers show with contrast."""
    found = subject.window(canvas, "heart", (85, 75, 75))
    if found is None:
        return
    hu, (window, (x, y, z)) = BLOOD[subject.contrast], found
    side = np.cross(APEX, (0, 0, 1.0))
    axes = np.stack([APEX / np.linalg.norm(APEX), side / np.linalg.norm(side), np.cross(APEX, side)])
    axes[2] /= np.linalg.norm(axes[2])
    ventricles = ellipsoid(x, y, z, (-26, 44, -70), (60, 46, 43), axes)
    right = ellipsoid(x, y, z, (15, 36, -62), (30, 34, 40))
    left = ellipsoid(x, y, z, (-8, 6, -46), (36, 22, 24))
    heart = blend(blend(ventricles, right, 14), left, 10)
    heart = np.maximum(heart, 3 - above[window])
    canvas.paint(window, heart, hu["myocardium"], LABELS["heart"])
    cavities = (
        ellipsoid(x, y, z, (-38, 40, -72), (36, 20, 20), axes),
        ellipsoid(x, y, z, (-2, 64, -74), (34, 15, 26)),
        ellipsoid(x, y, z, (17, 34, -60), (24, 27, 33)),
        ellipsoid(x, y, z, (-8, 6, -46), (32, 18, 20)),
    )
    for cavity in cavities:
        canvas.paint(window, np.maximum(cavity, heart + 4), hu["chambers"])


@cache
def _tree(side: int) -> Segments:
    """A lung's branching tubes in the atlas: from the hilum, each branch turns, thins and parts in two."""
    rng = np.random.default_rng(7 + side)
    hilum = np.array([side * 46.0, -4.0, -26.0])
    segments: Segments = []
    grow = [(hilum, np.array([side * x, y, z]) / np.hypot(np.hypot(x, y), z), 34.0, 3.6, 4) for x, y, z in BRANCHES]
    while grow:
        start, heading, length, radius, left = grow.pop()
        end = start + heading * length
        segments.append((np.stack([start, end]), np.array([radius, radius * 0.8])))
        if left == 0:
            continue
        turn = rng.normal(size=3)
        turn -= heading * (turn @ heading)
        turn /= np.linalg.norm(turn)
        for share in (0.55, -0.75):
            branch = heading + share * turn
            grow.append((end, branch / np.linalg.norm(branch), length * 0.82, radius * 0.74, left - 1))
    return segments


def lung_vessels(subject: Subject, side: int) -> Segments:
    """Arteries and veins of a lung: large ones as in the atlas, small ones a few mm off in each subject."""
    rng = subject.stream(8 + side)
    moved: Segments = []
    for points, radii in _tree(side):
        wobble = rng.normal(0, np.clip(5 - 2 * radii, 0, 4)[:, None], (2, 3))
        moved.append((points + wobble, radii))
    return moved
