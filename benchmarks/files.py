"""Synthetic scans and radiographs of real size that a gzip has as much work with as with real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

MR, CT, THICK_CT = (240, 240, 155), (400, 400, 326), (512, 512, 100)  # voxels
SPACING = {MR: (1.0, 1.0, 1.0), CT: (0.9, 0.9, 1.0), THICK_CT: (0.75, 0.75, 3.0)}  # mm


def write_scan(path: Path, shape: Sequence[int], kind: str, seed: int = 0) -> dict[str, Any]:
    """Write a body of smooth structures with noise as int16 NIfTI; its entry of a datalist.

    Args:
        path: `.nii.gz`.
        shape: voxels.
        kind: "mr": zero around the body, as after skull stripping; "ct": HU, -1000 with a noise of 10 around the body.
        seed: of structures and noise.
    """
    random = np.random.default_rng(seed)
    knots = torch.from_numpy(random.standard_normal((1, 1, *[max(4, n // 16) for n in shape]), dtype=np.float32))
    values = F.interpolate(knots, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0].numpy()
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True)
    reach = (0.6, 0.75, 0.85) if kind == "mr" else (0.8, 0.6, 2.0)
    body = sum((axis / r) ** 2 for axis, r in zip(axes, reach)) < 1
    noise = random.standard_normal(shape, dtype=np.float32)
    if kind == "mr":
        values = np.where(body, 400 + 120 * values + 12 * noise, 0).clip(0)
    else:
        values = np.where(body, 40 + 80 * values, -1000) + 10 * noise
    affine = np.diag([*SPACING.get(tuple(shape), (1.0, 1.0, 1.0)), 1.0])
    nib.save(nib.Nifti1Image(values.round().astype(np.int16), affine), path)
    return {"image": str(path), "subject": path.name.split(".")[0]}


def write_radiographs(folder: Path, count: int, side: int) -> list[dict[str, Any]]:
    """Smooth structures with some noise, 8 bit: they compress about as a radiograph does."""
    random = np.random.default_rng(0)
    items = []
    for number in range(count):
        image = gaussian_filter(random.random((side, side)), 24)
        image = (image - image.min()) / np.ptp(image) * 230 + random.normal(0, 3, (side, side))
        path = folder / f"image_{number:03d}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
        items.append({"image": str(path), "subject": path.stem})
    return items


def compression(path: str | Path, shape: Sequence[int]) -> float:
    """Bytes of the int16 voxels to one byte of the file."""
    return 2 * float(np.prod(shape)) / Path(path).stat().st_size
