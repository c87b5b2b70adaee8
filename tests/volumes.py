"""Volumes for tests."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor


def smooth_volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A bright smooth blob with texture on a dark ground, int16: something with a foreground and without symmetry."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    blob = 1000 * (sum(a**2 for a in axes) < 0.8)
    texture = sum(100 * (i + 1) * np.sin((3 + i) * a + i) for i, a in enumerate(axes))
    return (blob * (1 + 0.1 * texture / 100) + rng.normal(0, 20, shape)).astype(np.int16)


def ramp_volume(affine: np.ndarray, shape: tuple[int, ...]) -> MetaTensor:
    """A volume with one channel for each axis, whose values are its own world coordinates in mm."""
    dims = len(shape)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    world = index @ affine[:dims, :dims].T + affine[:dims, -1]
    return MetaTensor(torch.from_numpy(np.moveaxis(world, -1, 0)).float(), affine=torch.from_numpy(affine))
