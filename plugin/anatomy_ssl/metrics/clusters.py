"""Whether like things lie together: landmarks across patients, and clusters of tokens inside of masks."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_score

__all__ = ["best_clusters", "dice", "landmark_scores"]


def landmark_scores(z: np.ndarray, names: np.ndarray, subjects: np.ndarray) -> dict[str, float]:
    """How well a landmark is known by its neighbours in other patients.

    Args:
        z: `(N, F)`, compared by Euclidean distance.
        names: `(N,)` name of the landmark.
        subjects: `(N,)` patient.

    Returns:
        `nearest_accuracy`: share of rows whose nearest row of another patient bears the same name; of the rows whose
        name another patient has. `silhouette`: mean silhouette of the names.

    Raises:
        ValueError: there is one patient or one landmark only.
    """
    if len(set(subjects)) < 2 or len(set(names)) < 2:
        raise ValueError("Landmarks are compared across patients: give at least 2 patients and 2 landmarks.")
    distance = cdist(z, z)
    distance[subjects[:, None] == subjects[None]] = np.inf
    same = names[:, None] == names[None]
    known = (same & np.isfinite(distance)).any(axis=1)
    right = names[distance.argmin(axis=1)] == names
    return {"nearest_accuracy": float(right[known].mean()), "silhouette": float(silhouette_score(z, names))}


def best_clusters(labels: np.ndarray, mask: np.ndarray) -> list[int]:
    """The clusters whose union has the largest Dice with a mask.

    Dice of a union is 2 I / (S + M), I and S being sums over the clusters; such a ratio is largest for all clusters of
    which more than some share lies in the mask, so the sets by falling share are tried.

    Args:
        labels: `(P,)` cluster of each pixel, 0 and up.
        mask: `(P,)` bool.
    """
    inside = np.bincount(labels[mask], minlength=labels.max() + 1)
    size = np.bincount(labels, minlength=labels.max() + 1)
    order = np.argsort(-inside / np.maximum(size, 1), kind="stable")
    scores = 2 * inside[order].cumsum() / (size[order].cumsum() + mask.sum())
    return sorted(int(cluster) for cluster in order[: int(scores.argmax()) + 1])


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two bool arrays; NaN where both are empty."""
    total = first.sum() + second.sum()
    return float(2 * (first & second).sum() / total) if total else float("nan")
