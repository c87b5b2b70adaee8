"""Lesions of the phantom: irregular, textured, inside their host organ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from anatomy_ssl.data.phantom_anatomy import labels_at, texture
from anatomy_ssl.data.phantom_canvas import Canvas, ellipsoid
from anatomy_ssl.data.phantom_labels import LABELS
from anatomy_ssl.data.phantom_subject import Points, Subject

CANDIDATES = 40
MASS = 30.0  # a lung lesion is a nodule up to this diameter in mm, a mass beyond it

# Host organ: share of lesions, atlas box (mm) to look in, smallest and largest radius (mm).
HOSTS = {
    "lung_right": (0.27, ((20, -80, -140), (125, 90, 70)), (4.5, 19)),
    "lung_left": (0.23, ((-125, -80, -140), (-20, 90, 70)), (4.5, 19)),
    "liver": (0.26, ((-40, -50, -240), (130, 90, -100)), (5.5, 20)),
    "spine": (0.14, ((-16, -66, -330), (16, -8, 60)), (5.5, 11)),
    "kidney_right": (0.05, ((30, -50, -275), (86, 0, -180)), (5.5, 14)),
    "kidney_left": (0.05, ((-88, -50, -260), (-32, 0, -165)), (5.5, 14)),
}


@dataclass(frozen=True)
class Lesion:
    """One lesion; lengths in mm of the atlas, which differ from the body's by the subject's size."""

    host: str
    centre: Points
    radii: Points
    axes: Points
    hu: float
    stream: int

    def diameter(self, subject: Subject) -> float:
        """Mean diameter in the body, mm."""
        return float(2 * np.cbrt(self.radii.prod() * subject.warp.scale.prod()))


def draw_lesions(subject: Subject) -> list[Lesion]:
    """Draw one to five lesions for a subject, each well inside its host and inside the scanned field."""
    rng = subject.stream(5)
    names = list(HOSTS)
    lesions: list[Lesion] = []
    wanted = int(rng.integers(1, 6))
    for attempt in range(4 * wanted):
        if len(lesions) == wanted:
            break
        host = str(rng.choice(names, p=[HOSTS[name][0] for name in names]))
        _, box, (smallest, largest) = HOSTS[host]
        radii = rng.uniform(smallest, largest) * rng.uniform(0.85, 1.15, 3)
        places = rng.uniform(box[0], box[1], (CANDIDATES, 3))
        hu = _draw_hu(host, subject.contrast, rng)
        axes = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        good = [p for p in places[_inside(subject, host, places, radii)] if _clear(p, radii, lesions)]
        if good:
            lesions.append(Lesion(host, good[0], radii.clip(smallest, largest), axes, hu, 10 + attempt))
    return lesions


def paint_lesions(canvas: Canvas, subject: Subject, lesions: list[Lesion]) -> NDArray[np.bool_]:
    """Paint lesions into the HU of a painted canvas (labels stay the host's).

    Returns:
        The mask of all lesions, bool, of the canvas's shape.
    """
    mask = np.zeros(canvas.label.shape, bool)
    for lesion in lesions:
        reach = 1.4 * lesion.radii.max()
        window = canvas.window(lesion.centre - reach, lesion.centre + reach)
        if window is None:
            continue
        rng = subject.stream(lesion.stream)
        x, y, z = canvas.at(window)
        distance = ellipsoid(x, y, z, tuple(lesion.centre), tuple(lesion.radii), lesion.axes)
        size = float(lesion.radii.mean())
        for direction, phase in zip(rng.normal(size=(5, 3)), rng.uniform(0, 2 * np.pi, 5)):
            wave = direction / np.linalg.norm(direction) * rng.uniform(2.5, 5.0) / size
            distance = distance + 0.07 * size * np.cos(wave[0] * x + wave[1] * y + wave[2] * z + phase)
        distance = distance.astype(np.float32)
        rim = 14 * np.clip(1 - np.abs(distance + 2) / 2, 0, 1) if lesion.host == "liver" else 0.0
        rough = 60.0 if lesion.host == "spine" else 16.0
        hu = lesion.hu + rim + rough * texture(x, y, z, rng)
        canvas.paint(window, distance, hu, within=LABELS[lesion.host])
        mask[window] |= (distance < 0) & (canvas.label[window] == LABELS[lesion.host])
    return mask


def _draw_hu(host: str, contrast: bool, rng: np.random.Generator) -> float:
    if host.startswith("lung"):
        return float(rng.normal(-380, 60) if rng.random() < 0.2 else rng.normal(25, 15))
    if host == "liver":
        return float((108 if contrast else 58) - rng.uniform(26, 55))
    if host == "spine":
        return float(rng.normal(45, 15) if rng.random() < 0.5 else rng.normal(850, 90))
    return float(rng.choice([6, 80 if contrast else 58]) + rng.normal(0, 4))


def _inside(subject: Subject, host: str, places: Points, radii: Points) -> NDArray[np.bool_]:
    """Which atlas places `(N, 3)` have the host all round and lie in the scanned field, bool `(N,)`."""
    depth = 0.0 if host == "spine" else 0.7
    probes = np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)]) * radii * depth
    points = (places[:, None] + probes).reshape(-1, 3)
    held = (labels_at(subject, points) == LABELS[host]).reshape(len(places), -1).all(axis=1)
    return held & subject.in_field(subject.to_world(places), margin=float(radii.max()) + 4)


def _clear(place: Points, radii: Points, others: list[Lesion]) -> bool:
    return all(np.linalg.norm(place - o.centre) > radii.max() + o.radii.max() + 6 for o in others)
