"""Points of one scan found in another, as files for people and programs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import optional_import

from anatomy_ssl.data.folder import file_stem
from anatomy_ssl.matching.frame import read_frame
from anatomy_ssl.matching.matcher import Matcher, Matches, round_trip
from anatomy_ssl.matching.points_file import read_points, write_markups
from anatomy_ssl.metrics.tables import write_csv
from anatomy_ssl.transforms.load import LoadVolumed

__all__ = ["match_points"]

_DRAWN = 3  # points that get a picture by default


def match_points(
    matcher: Matcher,
    source: str,
    target: str,
    points: str | os.PathLike[str],
    output: str | os.PathLike[str],
    check_round_trip: bool = False,
    pictures: int | None = None,
    similarity: bool = False,
) -> list[Path]:
    """Match the points of a file, and write matches.csv, queries.mrk.json, matches.mrk.json and pictures.

    Args:
        matcher: finds them.
        source: scan that the points lie in; a file, or the folder of a DICOM series.
        target: scan that they are looked for in.
        points: see `read_points`.
        output: folder to write.
        check_round_trip: match back too, and say how far from the query that leads.
        pictures: how many points, the first ones, get a picture match_NAME.png; None: 3 where matplotlib is installed.
        similarity: draw similarity_NAME.png for them too, where else in the target each would fit.

    Returns:
        the paths written.

    Raises:
        ValueError: a point lies outside of the source, no match lies in the target, or the matcher has no similarity.
        FileNotFoundError: a file is missing.
    """
    names, places = read_points(points)
    if similarity and not hasattr(matcher, "similarity"):
        raise ValueError(f"{type(matcher).__name__} has no similarity map: leave --similarity out")
    a, b = ({"image": os.path.abspath(path), "subject": file_stem(path)} for path in (source, target))
    read_frame(b)
    if check_round_trip:
        found, back = round_trip(matcher, a, b, places)
    else:
        found, back = matcher(a, b, places), None
    if not (found.scores > 0).any():
        raise ValueError(
            f"none of {len(names)} points of {source} has a match in {target}: their fields of view do not overlap, or "
            "show other parts of the body"
        )
    folder = Path(output)
    scores = [f"score {score:.3f}" for score in found.scores.tolist()]
    written = [
        write_csv(folder / "matches.csv", _rows(names, places, found, back)),
        write_markups(folder / "queries.mrk.json", names, places),
        write_markups(folder / "matches.mrk.json", names, found.points, scores),
    ]
    number = (_DRAWN if optional_import("matplotlib")[1] else 0) if pictures is None else pictures
    drawn = range(min(number, len(names)))
    if drawn:
        volumes = _load(a), _load(b)
        for k in drawn:
            titles = [str(item["subject"]) for item in (a, b)]
            title = f"{names[k]}, {scores[k]}"
            written += _pictures(
                matcher if similarity else None, (a, b), volumes, places[k], found.points[k], folder, titles, title
            )
    return written


def _rows(
    names: Sequence[str], places: torch.Tensor, found: Matches, back: torch.Tensor | None
) -> list[dict[str, Any]]:
    rows = []
    for k, name in enumerate(names):
        row: dict[str, Any] = {"name": name}
        for prefix, place in (("", places[k]), ("match_", found.points[k])):
            row |= {prefix + axis: round(value, 3) for axis, value in zip("xyz", place.tolist())}
        row["score"] = round(float(found.scores[k]), 4)
        rows.append(row if back is None else row | {"round_trip_mm": round(float(back[k]), 3)})
    return rows


def _load(item: dict[str, str]) -> MetaTensor:
    return LoadVolumed("image")({"image": item["image"]})["image"]


def _pictures(
    matcher: Any,
    items: tuple[dict[str, str], dict[str, str]],
    volumes: tuple[MetaTensor, MetaTensor],
    query: torch.Tensor,
    match: torch.Tensor,
    folder: Path,
    names: Sequence[str],
    title: str,
) -> list[Path]:
    """The match, and with a matcher the similarity map too."""
    from anatomy_ssl.figures.matches import match_figure
    from anatomy_ssl.figures.similarity import similarity_figure

    stem = re.sub(r"[^\w.-]+", "_", title.rsplit(", score", 1)[0])
    points = query.tolist(), match.tolist()
    written = [match_figure(*volumes, *points, folder / f"match_{stem}.png", names, title)]
    if matcher is not None:
        values = matcher.similarity(*items, query)
        written.append(similarity_figure(*volumes, values, *points, folder / f"similarity_{stem}.png", names, title))
    return written
