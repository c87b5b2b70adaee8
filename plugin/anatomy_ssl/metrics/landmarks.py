"""What the errors of many landmarks in many pairs of patients come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["AXES", "landmark_table"]

AXES = ("right_left", "anterior_posterior", "superior_inferior")


def landmark_table(
    rows: Sequence[Mapping[str, Any]],
    within: float = 10.0,
    round_trip_within: float = 4.0,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row for all landmarks, then one for each.

    Args:
        rows: from `anatomy_ssl.engines.landmarks.evaluate_landmarks`.
        within: mm up to which a match counts as right.
        round_trip_within: mm from the query up to which a match leads back.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        landmark, n (matches), targets (patients), median_mm with a 95% bootstrap interval over target patients
        (low_mm, high_mm; NaN of a single patient), mean_mm, the share within that distance, the median along each axis
        in mm, and, where matches were followed back, the median distance and the share that leads back.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there is nothing to summarise: no pair of patients has a landmark in common")
    names = list(dict.fromkeys(str(row["landmark"]) for row in rows))
    groups = {"all": list(rows)} | {name: [row for row in rows if row["landmark"] == name] for name in names}
    chosen = groups if len(names) > 1 else {name: groups[name] for name in names}
    return [
        {"landmark": name, **_summary(group, within, round_trip_within, resamples, seed)}
        for name, group in chosen.items()
    ]


def _summary(
    rows: Sequence[Mapping[str, Any]], within: float, round_trip_within: float, resamples: int, seed: int
) -> dict[str, Any]:
    error = np.array([row["error_mm"] for row in rows], float)
    patients = np.array([str(row["target"]) for row in rows])
    targets = [error[patients == name] for name in np.unique(patients)]
    low, high = _median_interval(targets, resamples, seed)
    summary: dict[str, Any] = {"n": len(rows), "targets": len(targets), "median_mm": float(np.median(error))}
    summary |= {"low_mm": low, "high_mm": high, "mean_mm": float(error.mean())}
    summary[f"within_{within:g}_mm"] = float((error <= within).mean())
    summary |= {f"{axis}_mm": float(np.median([row[f"error_{axis}_mm"] for row in rows])) for axis in AXES}
    if "round_trip_mm" in rows[0]:
        back = np.array([row["round_trip_mm"] for row in rows], float)
        summary["round_trip_mm"] = float(np.median(back))
        summary[f"round_trip_within_{round_trip_within:g}_mm"] = float((back <= round_trip_within).mean())
    return summary


def _median_interval(errors: Sequence[np.ndarray], resamples: int, seed: int) -> tuple[float, float]:
    """95% interval of the median, from draws of whole patients: errors in one patient are no independent samples."""
    if len(errors) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(errors), size=(resamples, len(errors)))
    medians = [np.median(np.concatenate([errors[k] for k in draw])) for draw in draws]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)
