"""How far from the truth a matcher finds known landmarks of one patient in another."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from anatomy_ssl.data.table import read_table
from anatomy_ssl.matching.frame import read_frame
from anatomy_ssl.matching.matcher import Matcher, round_trip
from anatomy_ssl.metrics.landmarks import AXES, landmark_table
from anatomy_ssl.metrics.tables import write_csv, write_table
from anatomy_ssl.transforms.load import LoadVolumed
from anatomy_ssl.transforms.points import label_points

__all__ = ["choose_pairs", "evaluate_landmarks", "label_centroids", "landmarks_of", "read_landmarks", "write_landmarks"]

logger = logging.getLogger(__name__)

Landmarks = Mapping[str, Sequence[float]]
Item = Mapping[str, Any]


def read_landmarks(path: str | os.PathLike[str]) -> dict[str, dict[str, list[float]]]:
    """Landmarks of many patients from one table.

    Args:
        path: CSV with the columns subject, landmark, x, y, z (world mm, RAS+); rows with 0 in a column `in_field` are
            left out.

    Returns:
        subject -> landmark -> (x, y, z).

    Raises:
        FileNotFoundError: the table is not there.
        ValueError: a column is absent, or a coordinate is no number.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for number, row in enumerate(read_table(path, ("subject", "landmark", *"xyz")), start=1):
        if row.get("in_field", "1") in ("0", "0.0", "False", "false"):
            continue
        try:
            place = [float(row[axis]) for axis in "xyz"]
        except ValueError:
            place = [math.nan]
        if not all(map(math.isfinite, place)):
            raise ValueError(f"{path}, row {number}: x, y and z must be numbers in world mm (or in_field 0)")
        found.setdefault(row["subject"], {})[row["landmark"]] = place
    return found


def label_centroids(item: Item, labels: Mapping[str, int], key: str = "label") -> dict[str, list[float]]:
    """Centroids of the structures in an item's label map, world mm; absent ones have none.

    A structure that the edge of the map cuts has no centroid either: where it ends is the scanner's choice.

    Args:
        item: with the path of a label map under `key`.
        labels: name -> value in the map.
        key: of the map.

    Raises:
        ValueError: the item has no label map.
    """
    if not item.get(key):
        raise ValueError(f"{item['image']} has no {key!r} map: give one for every image, or landmarks in a CSV")
    volume = LoadVolumed(key)({key: item[key]})[key]
    values, last = volume.as_tensor()[0].round(), torch.tensor(volume.shape[1:]) - 1
    found = {}
    for name, value in labels.items():
        index = (values == value).nonzero()
        if len(index) and (index > 0).all() and (index < last).all():
            found[str(name)] = label_points(volume, [int(value)]).double().mean(0).tolist()
    return found


def landmarks_of(
    items: Sequence[Item],
    table: str | os.PathLike[str] | None = None,
    labels: Mapping[str, int] | None = None,
) -> list[dict[str, Sequence[float]]]:
    """The landmarks of each item that lie in its volume: from a table, from label maps, or its own `landmarks`.

    Raises:
        ValueError: both or neither are given, or no landmark is left.
    """
    if table is not None and labels is not None:
        raise ValueError("give landmarks as a CSV or labels of the label maps, not both")
    if table is not None:
        known = read_landmarks(table)
        found: list[Landmarks] = [known.get(str(item["subject"]), {}) for item in items]
    elif labels is not None:
        found = [label_centroids(item, labels) for item in tqdm(items, "centroids", disable=None)]
    else:
        found = [item.get("landmarks") or {} for item in items]
    kept = [_inside(item, marks) for item, marks in zip(items, found)]
    if not any(kept):
        source = table or ("the label maps" if labels else "the items' `landmarks`")
        raise ValueError(f"{source}: no landmark lies in any of {len(items)} volumes; check subjects and units")
    if outside := sum(map(len, found)) - sum(map(len, kept)):
        logger.info("%d landmarks lie outside of their volumes and are left out", outside)
    return kept


def _inside(item: Item, marks: Landmarks) -> dict[str, Sequence[float]]:
    """The landmarks that the item's volume shows."""
    if not marks:
        return {}
    shown = read_frame(item).contains(torch.tensor(list(marks.values()), dtype=torch.float64))
    return {name: place for (name, place), inside in zip(marks.items(), shown.tolist()) if inside}


def choose_pairs(subjects: Sequence[str], pairs: int | str = "all", seed: int = 0) -> list[tuple[int, int]]:
    """Ordered pairs (source, target) of images of different patients, by their numbers.

    Args:
        subjects: patient of each image.
        pairs: "all"; "next" for each image and the one after it in the list, the last with the first; or how many to
            draw.
        seed: of the draw.

    Raises:
        ValueError: there are no two patients, or `pairs` is something else.
    """
    everything = [(i, j) for i, j in permutations(range(len(subjects)), 2) if subjects[i] != subjects[j]]
    if not everything:
        raise ValueError("landmarks are looked for in other patients: the list needs images of at least two")
    if pairs == "all":
        return everything
    if pairs == "next":
        return [(i, j) for i, j in everything if j == (i + 1) % len(subjects)]
    if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1:
        raise ValueError(f"pairs is all, next or a number, not {pairs!r}")
    return sorted(random.Random(seed).sample(everything, min(pairs, len(everything))))


def evaluate_landmarks(
    matcher: Matcher,
    items: Sequence[Item],
    landmarks: Sequence[Landmarks],
    pairs: Sequence[tuple[int, int]],
    check_round_trip: bool = True,
) -> Iterator[dict[str, Any]]:
    """Find the landmarks of one patient in another, pair by pair.

    Args:
        matcher: finds points.
        items: with `image` and `subject`.
        landmarks: name -> world mm of each item.
        pairs: numbers of items (source, target).
        check_round_trip: match back too, at twice the cost.

    Yields:
        one row for each landmark that both patients of a pair have: source, target, landmark, query and match and truth
        in mm, `error_mm`, the same along each axis (absolute), `score` and `round_trip_mm`.
    """
    for i, j in tqdm(pairs, "pairs", disable=None):
        names = [name for name in landmarks[i] if name in landmarks[j]]
        if not names:
            continue
        query, truth = (torch.tensor([marks[n] for n in names]) for marks in (landmarks[i], landmarks[j]))
        if check_round_trip:
            found, back = round_trip(matcher, items[i], items[j], query.float())
        else:
            found, back = matcher(items[i], items[j], query.float()), torch.full((len(names),), torch.nan)
        apart = (found.points.to(truth) - truth).abs()
        for k, name in enumerate(names):
            row: dict[str, Any] = {"source": items[i]["subject"], "target": items[j]["subject"], "landmark": name}
            for key, place in (("", query), ("match_", found.points), ("true_", truth)):
                row |= {f"{key}{axis}": round(v, 3) for axis, v in zip("xyz", place[k].tolist())}
            row["error_mm"] = round(float(apart[k].norm()), 3)
            row |= {f"error_{axis}_mm": round(v, 3) for axis, v in zip(AXES, apart[k].tolist())}
            row["score"] = round(float(found.scores[k]), 4)
            yield row | ({"round_trip_mm": round(float(back[k]), 3)} if check_round_trip else {})


def write_landmarks(
    output: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    within: float = 10.0,
    round_trip_within: float = 4.0,
    seed: int = 0,
) -> Path:
    """Write the rows of `evaluate_landmarks` to landmarks.csv, and what they come to (`landmark_table`).

    Returns:
        landmarks_table.csv; landmarks_table.md lies beside it.

    Raises:
        ValueError: there are no rows.
    """
    table = landmark_table(rows, within, round_trip_within, seed=seed)
    write_csv(Path(output) / "landmarks.csv", rows)
    return write_table(Path(output) / "landmarks_table.csv", table, digits=2)
