"""The datalist of a phantom cohort's radiographs, from the cohort's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anatomy_ssl.data.datalist import Item

__all__ = ["radiograph_items"]


def radiograph_items(
    radiographs: Sequence[Mapping[str, Any]], landmarks: Sequence[Mapping[str, Any]]
) -> dict[str, list[Item]]:
    """Items of each split with what is known of every radiograph.

    Args:
        radiographs: rows of `radiographs.csv`.
        landmarks: rows of `landmarks.csv`.

    Returns:
        `training`, `validation` and `test`. An item has `image`, `lungs`, `heart` and `clavicles` (paths relative to
        the cohort's folder), `subject`, `sex`, `view`, `labels` (lesion, nodule, mass: 0 or 1), `spacing` (mm of a
        pixel along rows and columns) and `landmarks`: name -> [row, column] in pixels from the first one's centre, of
        those in the picture.
    """
    points: dict[str, dict[str, list[float]]] = {}
    for row in landmarks:
        if row["in_radiograph"] == "1":
            points.setdefault(row["subject"], {})[row["landmark"]] = [float(row["row"]), float(row["column"])]
    splits: dict[str, list[Item]] = {"training": [], "validation": [], "test": []}
    for row in radiographs:
        labels = {"lesion": 1 - int(row["no_finding"]), "nodule": int(row["nodule"]), "mass": int(row["mass"])}
        splits[row["split"]].append(
            {
                "image": row["path"],
                "lungs": row["lungs"],
                "heart": f"hearts/{row['subject']}.png",
                "clavicles": f"clavicles/{row['subject']}.png",
                **{key: row[key] for key in ("subject", "sex", "view")},
                "labels": labels,
                "spacing": [float(row["pixel_spacing_mm"])] * 2,
                "landmarks": points.get(row["subject"], {}),
            }
        )
    return splits
