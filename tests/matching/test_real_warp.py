"""The embedding that comes with the bundle, on a real CT and a known warp of it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from anatomy_ssl.matching import EmbeddingMatcher

EMBEDDING = Path(__file__).parents[2] / "bundles" / "alice" / "models" / "pretrained" / "embedding.pt"
SPACING = 4.0


def field(shape: tuple[int, ...], affine: np.ndarray, seed: int) -> np.ndarray:
    """A smooth displacement `(3, *shape)` in voxels: a shift of 30 mm, and bends of up to 10 mm over 60 mm."""
    rng = np.random.default_rng(seed)
    mm = np.linalg.norm(affine[:3, :3], axis=0)
    bend = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 60 / mm) for _ in range(3)])
    bend *= 10 / np.abs(bend).max(axis=(1, 2, 3), keepdims=True)
    return (bend + np.array([20.0, -15.0, 18.0])[:, None, None, None]) / mm[:, None, None, None]


@pytest.mark.parametrize("patient", ["pt_60", "pt_95"])
def test_a_volume_against_its_own_warp(real_data: Path, tmp_path: Path, patient: str) -> None:
    """Median error at most two steps of the fine map, and at most half of that of copying world coordinates."""
    source = real_data / "ct3d_headneck" / f"{patient}_ct.nii.gz"
    image = nib.load(source)
    values = np.asarray(image.dataobj).astype(np.float32)
    moved = field(values.shape, image.affine, seed=3)
    index = np.indices(values.shape, dtype=np.float64)
    # what lies at x in the warped volume lies at x + moved(x) in the source
    warped = ndimage.map_coordinates(values, index + moved, order=1, mode="constant", cval=-1024)
    target = tmp_path / "warped.nii.gz"
    nib.save(nib.Nifti1Image(warped.astype(np.int16), image.affine), target)
    body = np.argwhere(warped > -300)
    places = body[np.random.default_rng(0).choice(len(body), 60, replace=False)]
    origin = places + moved[(slice(None), *places.T)].T
    there = ((origin >= 0) & (origin <= np.array(values.shape) - 1)).all(axis=1)
    truth, points = (nib.affines.apply_affine(image.affine, p[there]) for p in (places, origin))
    matcher = EmbeddingMatcher(EMBEDDING, tmp_path / "store")
    items = [{"image": str(path), "subject": path.name} for path in (source, target)]
    found = matcher(*items, torch.from_numpy(points).float())
    error = np.median(np.linalg.norm(found.points.numpy() - truth, axis=1))
    copied = np.median(np.linalg.norm(points - truth, axis=1))
    assert error <= 2 * 2 * SPACING and error <= copied / 2, (error, copied)
