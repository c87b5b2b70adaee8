"""The phantom's abdomen: liver, spleen, stomach, gut, pancreas, kidneys and the muscles behind them."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from anatomy_ssl.data.phantom_canvas import Array, Canvas, Triple, blend, carve, chain, ellipsoid, smooth_path
from anatomy_ssl.data.phantom_labels import LABELS
from anatomy_ssl.data.phantom_subject import ORGAN_CENTRES, Subject

PARENCHYMA = {
    False: {"liver": 58.0, "liver_vessels": 44.0, "spleen": 48.0, "cortex": 33.0, "medulla": 30.0, "pancreas": 40.0},
    True: {
        "liver": 108.0,
        "liver_vessels": 150.0,
        "spleen": 122.0,
        "cortex": 190.0,
        "medulla": 135.0,
        "pancreas": 92.0,
    },
}

COLON = smooth_path(
    [(100, 22, -350), (104, 18, -305), (100, 14, -266), (66, 72, -268), (0, 92, -288), (-58, 78, -256), (-94, 22, -214)]
    + [(-108, -2, -250), (-107, 4, -310), (-92, 10, -375)],
    (21, 20, 18, 16, 15, 15, 16, 14, 13, 13),
    6,
)
STOMACH = smooth_path(
    [(-48, 4, -146), (-52, 22, -172), (-44, 52, -206), (-18, 68, -230), (14, 66, -234), (36, 52, -220)],
    (35, 34, 29, 23, 17, 12),
    2,
)
PANCREAS = smooth_path([(30, 36, -232), (14, 36, -212), (-32, 14, -198), (-70, -6, -188)], (14, 11, 9, 8), 2)
PSOAS = [(30, -40, -205), (40, -24, -290), (58, -6, -390)], (8, 18, 22)
QUADRATUS = [(58, -58, -205), (66, -56, -320)], (10, 13)
PORTAL = smooth_path([(8, 22, -200), (30, 22, -178), (62, 18, -160), (98, 8, -150)], (7, 7, 6, 3))
HEPATIC = (
    smooth_path([(26, -2, -118), (50, 20, -128), (92, 40, -150)], (5, 4.5, 3)),
    smooth_path([(26, -2, -118), (78, -22, -140), (104, -30, -170)], (5, 4.5, 3)),
    smooth_path([(24, 0, -118), (0, 40, -126), (-30, 62, -136)], (4.5, 4, 2.5)),
    smooth_path([(62, 18, -160), (80, 40, -185), (92, 45, -215)], (5, 4, 3)),
    smooth_path([(62, 18, -160), (90, -15, -185), (98, -20, -215)], (5, 4, 3)),
)


def paint_abdomen(canvas: Canvas, subject: Subject, wall: Array, above: Array, up: Triple) -> None:
    """All organs of the abdomen, back to front; `wall`, `above`: see `_paint_trunk`."""
    for side in (1, -1):
        mirror = np.array([side, 1, 1])
        for points, radii in (PSOAS, QUADRATUS):
            canvas.tube(np.array(points) * mirror, np.array(radii, float), 54.0, LABELS["muscle"])
    _paint_bowel(canvas, subject, up)
    _paint_stomach(canvas, subject, above, up)
    _paint_liver(canvas, subject, wall, above)
    _paint_spleen(canvas, subject, wall, above)
    pancreas = subject.place("pancreas", PANCREAS[0]), PANCREAS[1]
    canvas.tube(*pancreas, PARENCHYMA[subject.contrast]["pancreas"], LABELS["pancreas"])
    for side, name in ((1, "kidney_right"), (-1, "kidney_left")):
        _paint_kidney(canvas, subject, side, name)


def _paint_liver(canvas: Canvas, subject: Subject, wall: Array, above: Array) -> None:
    hu = PARENCHYMA[subject.contrast]
    found = subject.window(canvas, "liver", (150, 115, 105))
    if found is not None:
        window, (x, y, z) = found
        right = ellipsoid(x, y, z, (64, 12, -158), (84, 84, 78))
        tail = ellipsoid(x, y, z, (98, 8, -200), (34, 56, 58))
        left = ellipsoid(x, y, z, (-10, 58, -138), (72, 42, 34))
        liver = blend(blend(right, tail, 16), left, 22)
        underside = -259 + 0.72 * np.clip(112 - x, 0, 150) - 0.22 * (y - 20)
        liver = carve(liver, 0.8 * (underside - z), 14)
        liver = np.maximum(liver, np.maximum(above[window] + 4, wall[window] + 4))
        canvas.paint(window, liver, hu["liver"], LABELS["liver"])
        for points, radii in (PORTAL, *HEPATIC):
            canvas.tube(subject.place("liver", points), radii, hu["liver_vessels"], within=LABELS["liver"])
    found = subject.window(canvas, "gallbladder", (25, 30, 35))
    if found is not None:
        window, parts = found
        canvas.paint(window, ellipsoid(*parts, (45, 62, -222), (14, 18, 26)), 8.0, LABELS["gallbladder"])


def _paint_spleen(canvas: Canvas, subject: Subject, wall: Array, above: Array) -> None:
    found = subject.window(canvas, "spleen", (50, 60, 65))
    if found is None:
        return
    window, (x, y, z) = found
    spleen = ellipsoid(x, y, z, (-104, -20, -152), (30, 46, 54))
    spleen = np.maximum(spleen, 2 - ellipsoid(x, y, z, (-62, 0, -158), (24, 44, 50)))
    spleen = np.maximum(spleen, np.maximum(above[window] + 4, wall[window] + 4))
    canvas.paint(window, spleen, PARENCHYMA[subject.contrast]["spleen"], LABELS["spleen"])


def _paint_stomach(canvas: Canvas, subject: Subject, above: Array, up: Triple) -> None:
    """A bag with a wall, food and fluid below, and gas above a level across `up`."""
    found = subject.window(canvas, "stomach", (105, 85, 85))
    if found is None:
        return
    window, (x, y, z) = found
    bag = np.maximum(chain(x, y, z, *STOMACH), above[window] + 5)
    height = up[0] * x + up[1] * y + up[2] * z
    level = float(np.dot(up, (-48, 34, -136)))
    canvas.paint(window, bag, 45.0, LABELS["stomach"])
    canvas.paint(window, bag + 4, np.where(height > level, np.float32(-960), np.float32(22)))


def _paint_bowel(canvas: Canvas, subject: Subject, up: Triple) -> None:
    """Loops of small bowel and a colon framing them, with haustra and gas."""
    for number, (points, radii) in enumerate(small_bowel(subject)):
        canvas.tube(points, radii, 42.0, LABELS["bowel"])
        canvas.tube(points, radii - 3, -600.0 if number % 7 == 3 else 18.0)
    points, radii = COLON
    haustra = radii * (1 + 0.16 * np.sin(np.arange(len(radii)) * 2.1))
    canvas.tube(points, haustra, 45.0, LABELS["bowel"])
    canvas.tube(points, haustra - 3, 10.0)
    for part in (slice(0, 14), slice(17, 38), slice(42, None)):
        canvas.tube(points[part] + 5 * np.array(up), haustra[part] * 0.5, -820.0)


def _paint_kidney(canvas: Canvas, subject: Subject, side: int, name: str) -> None:
    """A bean leaning on the psoas: cortex, medulla, and the fat of the sinus open to the middle."""
    found = subject.window(canvas, name, (45, 40, 70))
    if found is None:
        return
    window, (x, y, z) = found
    hu = PARENCHYMA[subject.contrast]
    cx, cy, cz = ORGAN_CENTRES[name]
    lean = np.array([[0.97, 0.16 * side, 0.18 * side], [-0.16 * side, 0.985, 0.05], [-0.19 * side, -0.07, 0.98]])
    kidney = ellipsoid(x, y, z, (cx, cy, cz), (28, 25, 55), lean)
    sinus = ellipsoid(x, y, z, (cx - side * 16, cy + 3, cz), (17, 9, 22), lean)
    canvas.paint(window, kidney, hu["cortex"], LABELS[name])
    canvas.paint(window, kidney + 8, hu["medulla"])
    canvas.paint(window, np.maximum(sinus, kidney), -60.0)


@cache
def _loops() -> NDArray[np.float64]:
    """A tangle `(P, 3)`, mm: a walk that keeps to an ellipsoid behind the front wall."""
    rng = np.random.default_rng(11)
    centre, half = np.array([-4.0, 50.0, -322.0]), np.array([74.0, 40.0, 66.0])
    place, heading, points = np.zeros(3), np.array([1.0, 0, 0]), []
    for _ in range(104):
        points.append(centre + place * half)
        heading = heading + 0.9 * rng.normal(size=3) - 1.1 * place * float(place @ place)
        heading /= np.linalg.norm(heading)
        place = place + 0.30 * heading
        place /= max(1.0, float(np.linalg.norm(place)))
    return np.array(points)


def small_bowel(subject: Subject) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Loops of the small bowel in four-point pieces; they lie anew in every subject, as they do."""
    rng = subject.stream(3)
    points = _loops() + rng.normal(0, 5, (len(_loops()), 3))
    return [(points[i : i + 5], np.full(len(points[i : i + 5]), 12.5)) for i in range(0, len(points) - 1, 4)]
