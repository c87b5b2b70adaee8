"""Embeddings that no network made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from anatomy_ssl.matching import DenseEmbedding


def unit_field(shape: Sequence[int], features: int, smoothness: float, seed: int) -> np.ndarray:
    """`(*shape, features)` float16 unit vectors, random or, with a smoothness in entries, alike in a neighbourhood."""
    values = np.random.default_rng(seed).standard_normal((*shape, features))
    if smoothness:
        values = gaussian_filter(values, [*[smoothness] * len(shape), 0])
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float16)


def dense_embedding(
    shape: Sequence[int] = (19, 13, 22),
    features: int = 16,
    ratio: int = 4,
    smoothness: float = 1.0,
    seed: int = 0,
    source: str = "scan.nii.gz",
) -> DenseEmbedding:
    """Maps of a volume of `shape` fine entries, voxels of 3 mm, with its first voxel at -50, 20[, 7] mm."""
    affine = np.diag([*[3.0] * len(shape), 1.0])
    affine[:-1, -1] = (-50, 20, 7)[: len(shape)]
    return DenseEmbedding(
        fine=unit_field(shape, features, smoothness, seed),
        coarse=unit_field([-(-n // ratio) for n in shape], features, smoothness, seed + 1),
        affine=affine,
        fine_stride=2,
        coarse_stride=2 * ratio,
        shape=tuple(2 * n - n % 2 for n in shape),
        subject="p",
        source=source,
    )
