"""Volumes for tests."""

from __future__ import annotations

import numpy as np


def smooth_volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A bright smooth blob with texture on a dark ground, int16: something with a foreground and without symmetry."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    blob = 1000 * (sum(a**2 for a in axes) < 0.8)
    texture = sum(100 * (i + 1) * np.sin((3 + i) * a + i) for i, a in enumerate(axes))
    return (blob * (1 + 0.1 * texture / 100) + rng.normal(0, 20, shape)).astype(np.int16)
