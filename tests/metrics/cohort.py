"""Embeddings with a known amount of position in them."""

from __future__ import annotations

import numpy as np

from anatomy_ssl.data.embeddings import Embeddings


def cohort(
    subjects: int = 6, crops: int = 15, features: int = 8, noise: float = 0.0, seed: int = 0, dimensions: int = 3
) -> Embeddings:
    """Crops whose embedding is a rotation of their anatomical position (in 100 mm) plus noise.

    Each subject lies elsewhere in the scanner, so only positions relative to the origin can be compared.
    """
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(features, features)))[0][:dimensions]
    parts = []
    for k in range(subjects):
        anatomy = rng.uniform(-1, 1, (crops, dimensions)) * np.array([150.0, 100.0, 300.0])[:dimensions]
        origin = rng.normal(0, 200, dimensions)
        embedding = anatomy / 100 @ rotation + noise * rng.normal(size=(crops, features)) + 2
        parts.append(Embeddings(embedding, anatomy + origin, np.full(crops, f"p{k}"), np.array(["a"]), origin))
    return Embeddings.concatenate(parts)
