"""The phantom's atlas: the body from the skin inwards, painted for one subject. Procedural; drawn from no patient.

The atlas frame is millimetres, RAS+ (x to the patient's right, y to the front, z to the head), origin at the carina.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from anatomy_ssl.data import phantom_skeleton as skeleton
from anatomy_ssl.data.phantom_abdomen import paint_abdomen
from anatomy_ssl.data.phantom_canvas import AIR, Array, Canvas, Profile, blend, ellipsoid, section
from anatomy_ssl.data.phantom_chest import diaphragm, paint_chest
from anatomy_ssl.data.phantom_labels import LABELS
from anatomy_ssl.data.phantom_subject import Points, Subject

MUSCLE_WIDTH = Profile(
    [(170, 55), (140, 60), (118, 92), (104, 136), (85, 168), (50, 172), (20, 165), (-20, 159), (-80, 157), (-140, 155)]
    + [(-200, 149), (-250, 144), (-300, 142), (-350, 148), (-420, 160)]
)
MUSCLE_DEPTH = Profile(
    [(170, 56), (135, 58), (100, 70), (60, 83), (20, 97), (-20, 106), (-80, 112), (-140, 110), (-200, 105), (-250, 99)]
    + [(-300, 95), (-350, 97), (-420, 104)]
)
MUSCLE_Y = Profile(
    [(170, -8), (135, -10), (100, -12), (60, -10), (20, -4), (-20, 2), (-80, 8), (-140, 10), (-250, 13), (-400, 11)]
)
FAT_SHARE = Profile(
    [(170, 0.3), (110, 0.35), (40, 0.5), (-60, 0.6), (-140, 0.75), (-220, 1.0), (-330, 1.15), (-420, 1.3)]
)

TEXTURE_SIZE, TEXTURE_PITCH = 128, 2.0
TEXTURE = {
    "fat": 9,
    "muscle": 13,
    "liver": 7,
    "spine": 60,
    "breast": 32,
    "bowel": 18,
    "lung_right": 55,
    "lung_left": 55,
}


def paint_subject(canvas: Canvas, subject: Subject, up: tuple[float, float, float] = (0, 1, 0)) -> Canvas:
    """Paint a subject's HU and labels, without lesions and without noise.

    Args:
        canvas: voxels at their atlas position (mm).
        subject: whom to paint.
        up: direction against gravity, which gas in the gut follows: the front when lying, the head when standing.

    Returns:
        The canvas.
    """
    cavity = _paint_trunk(canvas, subject)
    if cavity is None:
        return canvas
    wall, above = cavity
    paint_abdomen(canvas, subject, wall, above, up)
    paint_chest(canvas, subject, wall, above)
    skeleton.paint_spine(canvas, subject.bone, LABELS["spine"], LABELS["muscle"])
    skeleton.paint_ribs(canvas, subject.bone, LABELS["ribs"], LABELS["cartilage"])
    skeleton.paint_sternum(canvas, subject.bone, LABELS["sternum"])
    shoulders = LABELS["scapulae"], LABELS["clavicles"], LABELS["humeri"]
    skeleton.paint_shoulders(canvas, wall, subject.bone, shoulders)
    skeleton.paint_pelvis(canvas, wall, subject.bone, LABELS["pelvis"])
    _add_texture(canvas, subject)
    return canvas


def labels_at(subject: Subject, atlas: Points) -> NDArray[np.uint8]:
    """Organ labels `(N,)` at atlas points `(N, 3)` in mm."""
    x, y, z = (np.ascontiguousarray(c, np.float32).reshape(-1, 1, 1) for c in atlas.T)
    return paint_subject(Canvas(x, y, z, edge=1.0), subject).label.reshape(-1)


def _paint_trunk(canvas: Canvas, subject: Subject) -> tuple[Array, Array] | None:
    """Skin, fat, muscle and the cavity with its lungs.

    Returns:
        Per voxel, mm: distance outside the trunk's inner wall and height above the diaphragm; None if all is air.
    """
    everything = tuple(slice(None) for _ in range(3))
    x, y, z = canvas.coordinates
    muscle = section(x, y, z, MUSCLE_WIDTH, MUSCLE_DEPTH, MUSCLE_Y)
    fat = subject.fat * FAT_SHARE(z) * (1 + np.float32(0.25) * np.clip(y / 100, -1, 1))
    outline = muscle - fat
    if subject.sex == "F":
        outline = blend(outline, _breasts(x, y, z, subject, 0.0), 18)
    if not (outline < canvas.edge).any():
        return None
    canvas.paint(everything, outline - 2.5, 10.0, LABELS["skin"])
    canvas.paint(everything, outline, -100.0, LABELS["fat"])
    if subject.sex == "F":
        window = canvas.window((-140, 60, -115), (140, 190, 15))
        if window is not None:
            gland = _breasts(*canvas.at(window), subject, 13.0)
            canvas.paint(window, gland, 5.0 - 0.5 * subject.age, LABELS["breast"])
    canvas.paint(everything, muscle, 52.0, LABELS["muscle"])
    for side in (1, -1):
        window = canvas.window((side * 132 - 22, -45, -20), (side * 132 + 22, 40, 75))
        if window is not None:
            canvas.paint(window, ellipsoid(*canvas.at(window), (side * 132, 0, 28), (15, 34, 42)), -95.0, LABELS["fat"])
    wall: Array = np.full(x.shape, 500, np.float32)
    above: Array = np.full(x.shape, 500, np.float32)
    window = canvas.window((-180, -130, -450), (180, 140, 90))
    if window is not None:
        parts = canvas.at(window)
        wall[window] = section(*parts, skeleton.CAVITY_WIDTH, skeleton.CAVITY_DEPTH, skeleton.CAVITY_Y)
        above[window] = parts[2] - diaphragm(parts[0], parts[1])
        sheet = np.abs(wall[window] - 15 - 2 * np.sin(parts[2] / 17)) - 0.8
        sheet = np.maximum(sheet, muscle[window] + 5)
        canvas.paint(window, np.maximum(sheet, parts[2] - 52), -60.0)
        canvas.paint(window, wall[window], -102.0, LABELS["fat"])
    return wall, above


def _breasts(x: Array, y: Array, z: Array, subject: Subject, shrink: float) -> Array:
    """Signed distance (mm) to both breasts; a heavier subject has more."""
    size = 1 + 0.012 * (subject.fat - 14)
    radii = (54 * size - shrink, 36 * size - shrink, 48 * size - shrink)
    return ellipsoid(np.abs(x), y, z, (74, 104, -52), radii)


@cache
def _texture_tile() -> Array:
    """Smooth periodic noise of unit variance, 256 mm wide, 2 mm apart; one draw for all."""
    noise = np.random.default_rng(20241).normal(size=(TEXTURE_SIZE,) * 3)
    tile = gaussian_filter(noise, 1.5, mode="wrap") + 2.4 * gaussian_filter(noise[::-1], 4.0, mode="wrap")
    return (tile / tile.std()).astype(np.float32)


def texture(x: Array, y: Array, z: Array, rng: np.random.Generator) -> Array:
    """Unit noise at atlas positions, shifted at random for each subject so that it marks no place of the atlas."""
    shift = rng.integers(0, TEXTURE_SIZE, 3)
    index = [
        ((c * np.float32(1 / TEXTURE_PITCH)).astype(np.int32) + int(s)) & (TEXTURE_SIZE - 1)
        for c, s in zip((x, y, z), shift)
    ]
    flat = (index[0] * TEXTURE_SIZE + index[1]) * TEXTURE_SIZE + index[2]
    return _texture_tile().reshape(-1)[flat]


def _add_texture(canvas: Canvas, subject: Subject) -> None:
    amount = np.full(256, 9, np.float32)
    amount[LABELS["background"]] = 0
    for organ, sd in TEXTURE.items():
        amount[LABELS[organ]] = sd
    canvas.hu += amount[canvas.label] * texture(*canvas.coordinates, subject.stream(1))
    np.maximum(canvas.hu, AIR, out=canvas.hu)
