"""Write the phantom cohort: procedural "patients" as CT, organ and lesion maps, radiographs and tables.

A test object with a known truth. It is drawn from an atlas of formulas, from no patient, and a result on it never
stands in for a result on patients.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from tqdm import tqdm

from anatomy_ssl.data.atomic import atomic_write
from anatomy_ssl.data.datalist import write_datalist
from anatomy_ssl.data.phantom_anatomy import paint_subject
from anatomy_ssl.data.phantom_canvas import Canvas, Triple
from anatomy_ssl.data.phantom_labels import LANDMARKS, ORGANS
from anatomy_ssl.data.phantom_lesions import MASS, Lesion, draw_lesions, paint_lesions
from anatomy_ssl.data.phantom_radiographs import radiograph_items
from anatomy_ssl.data.phantom_subject import Points, Subject, draw_subject
from anatomy_ssl.data.radiograph import Radiograph, project_subject

__all__ = ["has_lesions", "render_subject", "split_of", "write_phantom_cohort"]

SPACINGS: tuple[Triple, ...] = ((4, 4, 4), (3, 3, 5), (5, 5, 3))
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR")
# 12 : 3 : 5 in twenty, with a validation and two test subjects among the first four.
_TRAINING, _VALIDATION, _TEST = "training", "validation", "test"
SPLITS = {1: _TEST, 2: _VALIDATION, 3: _TEST, 8: _TEST, 11: _VALIDATION, 15: _TEST, 18: _VALIDATION, 19: _TEST}

README = """Phantom cohort of anatomy-ssl: {subjects} procedural "patients", seed {seed}.

This is a TEST OBJECT. It was drawn by a program from formulas and from no patient. It shows whether code runs and
whether a method can find a truth that is known exactly; it never stands in for a result on patients.

How it was made: one atlas of a thorax and abdomen (organs are smooth solids in millimetres, origin at the carina) is
bent by a random smooth invertible map for each subject and sized by sex, height and body mass; some organs move and
swell a little on their own. Voxels are painted at their place in the atlas, so that spacing, orientation and origin
do not change the anatomy.
    python -m anatomy_ssl phantom --output DIR --subjects {subjects} --seed {seed}

images/       CT, HU, int16 NIfTI, with true headers: spacings, orientations, obliqueness and origins differ
organs/       organ maps, uint8; the values are in datalist.json
lesions/      lesion masks, uint8; half of the subjects have none{lesion_note}
datalist.json Medical Segmentation Decathlon form; "origin" is the carina in world mm, RAS+. The split follows from the
              subject's number modulo 20: validation 2, 11, 18; test 1, 3, 8, 15, 19; training otherwise
subjects.csv  attributes. "spacing" (mm) is in the order of the stored axes, "orientation" says where these point
landmarks.csv named points: world mm, RAS+; in_field: inside the CT; column, row: pixels in the radiograph, from 0
{radiograph_note}"""
RADIOGRAPH_NOTE = """radiographs/  PA chest radiographs, 8-bit PNG: Beer-Lambert projection of the subjects, upright
lungs/        lung fields in them, 0 or 255
radiographs.csv  their table, with lesion labels: nodule (up to 30 mm), mass, no_finding
"""


def write_phantom_cohort(
    output: str | os.PathLike[str],
    subjects: int = 24,
    seed: int = 0,
    spacings: Sequence[Sequence[float]] = SPACINGS,
    radiographs: bool = True,
    radiograph_size: int = 512,
    training_lesions: bool = True,
    progress: bool = True,
) -> Path:
    """Write a cohort of phantom subjects; the same arguments give the same bytes, and more subjects change none before.

    Args:
        output: folder to write to; existing files of the cohort are replaced.
        subjects: how many.
        seed: seed of the cohort.
        spacings: voxel spacings in mm along right, front and head, taken in turn.
        radiographs: also project radiographs (needs Pillow).
        radiograph_size: side of the radiographs in pixels.
        training_lesions: False leaves training subjects without lesions, as in autoPET's use by Jabareen et al. 2024.
        progress: show a progress bar where there is a terminal.

    Returns:
        Path of the volumes' datalist; that of the radiographs is `radiographs.json` beside it.

    Raises:
        ValueError: if `subjects`, `seed`, `spacings` or `radiograph_size` cannot be used.
        ImportError: if radiographs are wanted and Pillow is missing.
    """
    _check(subjects, seed, spacings, radiograph_size)
    if radiographs:
        _encode_png(np.zeros((1, 1), np.uint8))
    output = Path(output)
    tables: dict[str, list[dict[str, Any]]] = {"subjects": [], "landmarks": [], "radiographs": []}
    items: dict[str, list[dict[str, Any]]] = {_TRAINING: [], _VALIDATION: [], _TEST: []}
    for index in tqdm(range(subjects), "phantom", disable=None if progress else True):
        subject = draw_subject(index, seed)
        split = split_of(index)
        ill = has_lesions(index) and (training_lesions or split != _TRAINING)
        lesions = draw_lesions(subject) if ill else []
        images = render_subject(
            subject, spacings[index % len(spacings)], ORIENTATIONS[(index + index // 4) % 4], lesions
        )
        items[split].append(_write_images(output, subject, images))
        tables["subjects"].append(_subject_row(subject, images["images"], lesions, split))
        picture = project_subject(subject, lesions, radiograph_size) if radiographs else None
        tables["landmarks"] += _landmark_rows(subject, picture)
        if picture is not None:
            tables["radiographs"].append(_write_radiograph(output, subject, picture, lesions, split))
    for name, rows in tables.items():
        if rows:
            _write_table(output / f"{name}.csv", rows)
    if radiographs:
        pictures = radiograph_items(tables["radiographs"], tables["landmarks"])
        write_datalist(output / "radiographs.json", pictures, name="phantom radiographs", licence="Apache-2.0")
    note = "" if training_lesions else ", nor has any training subject"
    text = README.format(subjects=subjects, seed=seed, lesion_note=note, radiograph_note=RADIOGRAPH_NOTE * radiographs)
    _write(output / "README.txt", text.encode())
    path = output / "datalist.json"
    _write(path, (json.dumps(_datalist(items), indent=1) + "\n").encode())
    return path


def split_of(index: int) -> str:
    """`training`, `validation` or `test`, from the subject's number alone (12 : 3 : 5 in every twenty)."""
    return SPLITS.get(index % 20, _TRAINING)


def has_lesions(index: int) -> bool:
    """Every other subject of each split, beginning with its first."""
    return sum(split_of(i) == split_of(index) for i in range(index)) % 2 == 0


def render_subject(
    subject: Subject, spacing: Sequence[float], orientation: str = "RAS", lesions: Sequence[Lesion] = ()
) -> dict[str, nib.Nifti1Image]:
    """Scan a subject.

    Args:
        subject: whom.
        spacing: voxel spacing in mm along right, front and head.
        orientation: where the stored axes point, e.g. `LPS`.
        lesions: lesions to paint.

    Returns:
        `images` (HU, int16), `organs` and `lesions` (uint8), on one grid.
    """
    low, high = subject.scan_field
    step = np.asarray(spacing, dtype=float)
    shape = tuple(int(n) for n in np.ceil((high - low) / step - 1e-6))
    affine = np.eye(4)
    affine[:3, :3] = subject.scan_axes * step
    affine[:3, 3] = subject.scan_axes @ (low + step / 2) + subject.translation
    grid = subject.warp.grid(subject.grid_from_world(affine), shape)
    canvas = paint_subject(Canvas(*grid, edge=float(step.mean())), subject)
    mask = paint_lesions(canvas, subject, list(lesions))
    noise = subject.stream(6).standard_normal(shape, dtype=np.float32)
    hu = np.clip(np.rint(canvas.hu + subject.noise * noise), -1024, 3071).astype(np.int16)
    volumes: dict[str, NDArray[Any]] = {"images": hu, "organs": canvas.label, "lesions": mask.astype(np.uint8)}
    return {kind: _to_nifti(volume, affine, orientation) for kind, volume in volumes.items()}


def _to_nifti(volume: NDArray[Any], affine: Points, orientation: str) -> nib.Nifti1Image:
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    stored = np.ascontiguousarray(nib.apply_orientation(volume, turn))
    image = nib.Nifti1Image(stored, affine @ inv_ornt_aff(turn, volume.shape))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"procedural phantom, no patient"
    return image


def _write_images(output: Path, subject: Subject, images: Mapping[str, nib.Nifti1Image]) -> dict[str, Any]:
    """Write a subject's volumes; returns its datalist item."""
    files = {kind: f"{kind}/{subject.name}.nii.gz" for kind in images}
    for kind, image in images.items():
        _write(output / files[kind], gzip.compress(image.to_bytes(), 1, mtime=0))
    return {
        "image": files["images"],
        "label": files["organs"],
        "lesion": files["lesions"],
        "subject": subject.name,
        "origin": subject.to_world(np.zeros((1, 3)))[0].round(3).tolist(),
    }


def _subject_row(subject: Subject, image: nib.Nifti1Image, lesions: list[Lesion], split: str) -> dict[str, Any]:
    return {
        "subject": subject.name,
        "sex": subject.sex,
        "age_years": subject.age,
        "height_cm": subject.height,
        "weight_kg": subject.weight,
        "contrast": int(subject.contrast),
        "spacing": "x".join(f"{s:g}" for s in np.round(image.header.get_zooms(), 3)),
        "orientation": "".join(nib.aff2axcodes(image.affine)),
        "lesions": len(lesions),
        "lesion_organs": " ".join(sorted({lesion.host for lesion in lesions})),
        "split": split,
    }


def _landmark_rows(subject: Subject, picture: Radiograph | None) -> list[dict[str, Any]]:
    atlas = np.concatenate([subject.place(organ, np.array([point], float)) for organ, point in LANDMARKS.values()])
    world = subject.to_world(atlas)
    shown = subject.in_field(world)
    pixels = picture.project(subject.warp.to_subject(atlas)) if picture is not None else None
    rows = []
    for i, name in enumerate(LANDMARKS):
        x, y, z = (f"{c:.3f}" for c in world[i])
        row = {"subject": subject.name, "landmark": name, "x": x, "y": y, "z": z, "in_field": int(shown[i])}
        column = line = seen = ""
        if picture is not None and pixels is not None:
            column, line = (f"{c:.2f}" for c in pixels[i])
            seen = str(int(((pixels[i] >= 0) & (pixels[i] <= len(picture.image) - 1)).all()))
        rows.append({**row, "column": column, "row": line, "in_radiograph": seen})
    return rows


def _write_radiograph(
    output: Path, subject: Subject, picture: Radiograph, lesions: list[Lesion], split: str
) -> dict[str, Any]:
    image, lungs = (f"{kind}/{subject.name}.png" for kind in ("radiographs", "lungs"))
    _write(output / image, _encode_png(picture.image))
    masks = {"lungs": picture.lungs, "hearts": picture.heart, "clavicles": picture.clavicles}
    for kind, mask in masks.items():
        _write(output / kind / f"{subject.name}.png", _encode_png(mask.astype(np.uint8) * 255))
    sizes = [lesion.diameter(subject) for lesion in lesions if lesion.host.startswith("lung")]
    return {
        "path": image,
        "lungs": lungs,
        "subject": subject.name,
        "sex": subject.sex,
        "age_years": subject.age,
        "view": "PA",
        "nodule": int(any(size <= MASS for size in sizes)),
        "mass": int(any(size > MASS for size in sizes)),
        "no_finding": int(not sizes),
        "pixel_spacing_mm": f"{picture.spacing:.5f}",
        "split": split,
    }


def _datalist(items: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "name": "phantom",
        "description": "Procedural thorax and abdomen CT, a test object: drawn from formulas, from no patient",
        "licence": "Apache-2.0",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(ORGANS)},
        "numTraining": len(items[_TRAINING]),
        "numValidation": len(items[_VALIDATION]),
        "numTest": len(items[_TEST]),
        **items,
    }


def _check(subjects: int, seed: int, spacings: Sequence[Sequence[float]], radiograph_size: int) -> None:
    if subjects < 1:
        raise ValueError(f"subjects is {subjects}; a phantom cohort needs at least 1.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more.")
    if radiograph_size < 32:
        raise ValueError(f"radiograph_size is {radiograph_size}; at least 32 pixels are needed.")
    if len(spacings) == 0:
        raise ValueError("spacings is empty; give at least one triple such as (4, 4, 4).")
    for spacing in spacings:
        values = np.asarray(spacing, dtype=float)
        if values.shape != (3,) or not np.isfinite(values).all() or (values <= 0).any():
            raise ValueError(f"spacing {tuple(spacing)} is not three positive numbers in mm.")


def _encode_png(image: NDArray[np.uint8]) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Radiographs need Pillow: pip install anatomy-ssl[figures], or pass radiographs=False."
        ) from error
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue().encode())


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)
