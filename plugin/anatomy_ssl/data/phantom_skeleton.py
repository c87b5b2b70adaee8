"""The phantom's bones: spine, ribs with cartilage, sternum, clavicles, scapulae, humeral heads and iliac wings."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from anatomy_ssl.data.phantom_canvas import Array, Canvas, Profile, ellipsoid, section_gauge, smooth_path

Path = tuple[NDArray[np.float64], NDArray[np.float64]]

VERTEBRAE = {
    "C3": 151, "C4": 136, "C5": 121, "C6": 105, "C7": 89, "T1": 72, "T2": 53, "T3": 33, "T4": 12, "T5": -10, "T6": -33,
    "T7": -57, "T8": -81, "T9": -106, "T10": -132, "T11": -159, "T12": -187, "L1": -217, "L2": -249, "L3": -283,
    "L4": -318, "L5": -353, "S1": -385, "S2": -412, "S3": -438,
}  # fmt: skip

VERTEBRA_NUMBER = Profile([(z, number) for number, z in enumerate(VERTEBRAE.values())])
SPINE_Y = Profile(
    [(170, -10), (137, -8), (105, -14), (72, -30), (33, -42), (-10, -48), (-57, -52), (-106, -52), (-159, -46)]
    + [(-187, -41), (-217, -34), (-249, -27), (-283, -22), (-318, -22), (-353, -29), (-385, -44), (-430, -66)]
)
SPINE_WIDTH = Profile(
    [(150, 11), (89, 13), (33, 14), (-57, 15), (-132, 17), (-187, 20), (-249, 23), (-318, 25), (-400, 30)]
)
SPINE_DEPTH = Profile([(150, 9), (89, 10), (33, 12), (-57, 14.5), (-187, 16), (-318, 18), (-400, 15)])

# Inner wall of the trunk, lined by lungs above the diaphragm and by viscera below it: half width, half depth, centre.
CAVITY_WIDTH = Profile(
    [
        (88, 0.5),
        (85, 28),
        (80, 46),
        (72, 62),
        (60, 77),
        (50, 87),
        (25, 107),
        (0, 119),
        (-40, 129),
        (-80, 134),
        (-120, 136),
    ]
    + [(-160, 134), (-200, 130), (-250, 127), (-300, 124), (-350, 125), (-420, 110)]
)
CAVITY_DEPTH = Profile(
    [(88, 0.5), (85, 16), (80, 26), (72, 35), (60, 43), (50, 49), (25, 62), (0, 75), (-40, 86), (-80, 92), (-120, 94)]
    + [(-160, 92), (-200, 88), (-250, 82), (-300, 77), (-350, 76), (-420, 70)]
)
CAVITY_Y = Profile(
    [
        (85, -16),
        (50, -13),
        (0, 0),
        (-40, 8),
        (-80, 12),
        (-120, 14),
        (-160, 14),
        (-200, 16),
        (-250, 22),
        (-300, 26),
        (-420, 20),
    ]
)

STERNUM_WIDTH = Profile([(60, 22), (48, 26), (22, 18), (5, 14), (-40, 17), (-80, 19), (-98, 10), (-115, 5)])
RIB_DROP = (26, 40, 50, 57, 62, 66, 70, 72, 72, 70, 52, 36)
RIB_END = (2.5, 2.5, 2.45, 2.4, 2.35, 2.3, 2.25, 2.1, 1.95, 1.8, 1.3, 0.95)
CARTILAGE_END = (
    *((2.85, 45), (2.9, 12), (2.95, -12), (2.95, -34), (2.95, -54), (2.95, -74), (2.95, -92)),
    *((2.75, -112), (2.5, -138), (2.25, -168)),
)


def _scalar(profile: Profile, z: NDArray[np.float64]) -> NDArray[np.float64]:
    return profile(z.astype(np.float32)).astype(float)


def on_wall(angle: NDArray[np.float64], z: NDArray[np.float64], out: float, side: int) -> NDArray[np.float64]:
    """Points `(P, 3)` mm, `out` mm outside the trunk's inner wall; `angle` from the back (0) to the front (pi)."""
    u, v = np.sin(angle), -np.cos(angle)
    gauge = section_gauge(u, v)
    x = _scalar(CAVITY_WIDTH, z) * u / gauge
    y = _scalar(CAVITY_DEPTH, z) * v / gauge
    stretch = 1 + out / np.maximum(np.hypot(x, y), 1)
    return np.stack([side * x * stretch, _scalar(CAVITY_Y, z) + y * stretch, z], axis=1)


@cache
def rib_paths() -> tuple[list[Path], list[Path]]:
    """Bony ribs and costal cartilages as tubes, both sides."""
    bones, cartilages = [], []
    tops = [VERTEBRAE[f"T{n}"] for n in range(1, 13)]
    for side in (1, -1):
        for rib, (top, drop, last) in enumerate(zip(tops, RIB_DROP, RIB_END)):
            angle = np.linspace(0.5, last, 12 if rib < 10 else 7)
            z = top - drop * np.clip((angle - 0.3) / 2.05, 0, 1.02) ** 0.95
            arc = on_wall(angle, z, 5.0, side)
            spine = float(SPINE_Y(np.float32(top)[None])[0])
            head = np.array([[side * 19.0, spine - 9.0, top], [side * 31.0, spine - 23.0, top - 1.0]])
            bones.append((np.concatenate([head, arc]), np.r_[4.0, 4.5, np.full(len(arc), 4.2)]))
            if rib < 10:
                stop, level = CARTILAGE_END[rib]
                angle = np.linspace(last, stop, 6)
                ease = np.linspace(0, 1, 6) ** 1.3
                cartilages.append((on_wall(angle, z[-1] + (level - z[-1]) * ease, 5.5, side), np.full(6, 4.4)))
    return bones, cartilages


def paint_spine(canvas: Canvas, bone: float, label: int, muscle: int) -> None:
    """Vertebral bodies with discs between them, arches round a canal, transverse and spinous processes."""
    window = canvas.window((-50, -125, -450), (50, 20, 160))
    if window is None:
        return
    x, y, z = canvas.at(window)
    number = VERTEBRA_NUMBER(z)
    phase = number - np.round(number)  # 0 at the middle of a body, +-0.5 at a disc
    depth = SPINE_DEPTH(z)
    back = y - SPINE_Y(z)
    waist = 1 - np.float32(0.14) * np.cos(2 * np.pi * phase)
    body = ellipsoid(x / (SPINE_WIDTH(z) * waist), back / (depth * waist), np.zeros_like(z), (0, 0, 0), (1, 1, 1))
    body *= depth
    disc = np.abs(phase) > 0.36
    endplate = np.clip(1 - np.abs(np.abs(phase) - np.float32(0.33)) * 14, 0, 1)
    shell = np.clip(1 + body / 3, 0, 1)
    core = bone * (180 + 330 * np.maximum(endplate, shell))
    erector = ellipsoid(np.abs(x), back + depth + 14, np.zeros_like(z), (16, 0, 0), (24, 20, 1))
    canvas.paint(window, erector, 50.0, muscle)
    canvas.paint(window, body, np.where(disc, np.float32(85), core).astype(np.float32), label)
    back = back + depth + 8
    arch = np.abs(np.sqrt(x * x + back * back) - 11) - np.float32(3.2)
    arch = np.maximum(arch, (np.abs(phase) - np.float32(0.3)) * 22)
    arch = np.maximum(arch, back - 10)
    droop = phase + (back + 12) * np.float32(0.012)
    spinous = np.maximum(np.abs(x) - np.float32(3.2), np.maximum(np.abs(droop) * 24 - 7, np.abs(back + 20) - 12))
    wing = np.maximum(np.abs(np.abs(x) - 22) - 13, np.maximum(np.abs(back + 2) - 4, np.abs(phase) * 24 - 4))
    posterior = np.minimum(np.minimum(arch, spinous), wing)
    canvas.paint(window, posterior, bone * (300 + 330 * np.clip(1 + posterior / 2, 0, 1)).astype(np.float32), label)


def paint_ribs(canvas: Canvas, bone: float, rib_label: int, cartilage_label: int) -> None:
    """Twelve pairs of ribs, ten of them with cartilage towards the sternum."""
    bones, cartilages = rib_paths()
    for points, radii in cartilages:
        canvas.tube(points, radii, 110.0, cartilage_label, flat=0.72)
    for points, radii in bones:
        canvas.tube(points, radii, 820.0 * bone, rib_label, marrow=260.0 * bone, flat=0.66)


def paint_sternum(canvas: Canvas, bone: float, label: int) -> None:
    """A plate along the front wall: broad manubrium, body, thin xiphoid."""
    window = canvas.window((-30, 0, -130), (30, 130, 65))
    if window is None:
        return
    x, y, z = canvas.at(window)
    half_width = STERNUM_WIDTH(z)
    front = y - (CAVITY_Y(z) + CAVITY_DEPTH(z) + 7)
    plate = np.maximum(np.abs(x) - half_width, np.abs(front) * (1 + 0.35 * (z > 35)) - np.float32(5.5))
    plate = np.maximum(plate, np.maximum(z - 58, -116 - z))
    canvas.paint(window, plate, bone * (220 + 330 * np.clip(1 + plate / 2, 0, 1)), label)


def paint_shoulders(canvas: Canvas, wall: Array, bone: float, labels: tuple[int, int, int]) -> None:
    """Scapulae, clavicles and humeral heads; `wall`: distance outside the trunk's inner wall; labels in that order."""
    for side in (1, -1):
        window = canvas.window(np.minimum((side * 50, -130, -90), (side * 175, -130, -90)),
                               np.maximum((side * 50, 10, 75), (side * 175, 10, 75)))  # fmt: skip
        if window is not None:
            x, y, z = canvas.at(window)
            reach = np.clip((z + 82) / 135, 0, 1)  # 0 at the inferior angle, 1 at the upper border
            medial, lateral = 92 - 22 * reach, 104 + 34 * reach
            blade = np.maximum(np.abs(wall[window] - 21 - 7 * reach) - np.float32(2.8), y + 12)
            blade = np.maximum(blade, np.maximum(medial - side * x, side * x - lateral))
            blade = np.maximum(blade, np.maximum(z - 58, -80 - z))
            canvas.paint(window, blade, bone * (350 + 300 * np.clip(1 + blade / 2, 0, 1)), labels[0])
        for points, radii in shoulder_paths(side):
            canvas.tube(points, radii, 700.0 * bone, labels[0], marrow=330.0 * bone)
        points, radii = clavicle_path(side)
        canvas.tube(points, radii, 820.0 * bone, labels[1], marrow=330.0 * bone)
        head = np.array([[side * 157.0, -16.0, 60.0], [side * 163.0, -14.0, 40.0]])
        canvas.tube(head, np.array([23.0, 18.0]), 560.0 * bone, labels[2], marrow=230.0 * bone)


@cache
def clavicle_path(side: int) -> Path:
    """The S of a clavicle from the manubrium to the acromion."""
    points = [(22, 36, 56), (48, 42, 63), (80, 34, 73), (112, 10, 82), (145, -12, 86)]
    return smooth_path([(side * x, y, z) for x, y, z in points], (8, 6.5, 5.5, 5.5, 6.5), 4)


@cache
def shoulder_paths(side: int) -> tuple[Path, ...]:
    """Spine of the scapula to the acromion, the neck with the glenoid, the coracoid."""
    ridge = smooth_path([(side * x, y, z) for x, y, z in ((80, -92, 30), (115, -84, 52), (155, -40, 88))], (3.5, 5, 6))
    neck = smooth_path([(side * x, y, z) for x, y, z in ((112, -70, 40), (128, -45, 52), (136, -26, 56))], (6, 9, 14))
    beak = smooth_path([(side * x, y, z) for x, y, z in ((130, -30, 66), (124, -6, 74), (128, 8, 68))], (6, 5, 4))
    return ridge, neck, beak


def paint_pelvis(canvas: Canvas, wall: Array, bone: float, label: int) -> None:
    """Iliac wings along the flank's wall, with a crest at the level of L4."""
    window = canvas.window((-165, -110, -460), (165, 70, -300))
    if window is None:
        return
    x, y, z = canvas.at(window)
    angle = np.arctan2(np.abs(x), 20 - y)
    crest = -318 - 55 * ((angle - 1.35) / 0.75) ** 2
    wing = np.maximum(
        np.abs(wall[window] - 7) - np.float32(5.5), np.maximum(z - crest, np.maximum(0.42 - angle, angle - 2.05) * 60)
    )
    canvas.paint(window, wing, bone * (230 + 400 * np.clip(1 + wing / 2.5, 0, 1)), label)
