"""The visual tests of PEAC (Zhou et al. 2023, arXiv 2312.00335), each with numbers beside what is trivial or random."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.preprocessing import normalize

from anatomy_ssl.data.tokens import TokenMap
from anatomy_ssl.engines.encoded import EncodedImages, errors_told
from anatomy_ssl.figures.correspondence import correspondence_figure
from anatomy_ssl.figures.tokens import landmark_tsne
from anatomy_ssl.metrics.clusters import landmark_scores
from anatomy_ssl.metrics.correspondence import landmark_errors, match, refined, summarise, tokens_at
from anatomy_ssl.metrics.statistics import random_rows
from anatomy_ssl.metrics.tables import markdown_table, write_csv, write_table

__all__ = ["CorrespondenceTest", "LandmarkTest", "method_table"]

logger = logging.getLogger(__name__)
Rows = list[dict[str, Any]]


class CorrespondenceTest:
    """Points of one radiograph found in others by their tokens, as a picture, and, where landmarks are known, a table.

    Args:
        images: the images and encoders.
        output_dir: where `correspondence.png`, `matches.csv`, and, from landmarks, `correspondence.csv` (one row for
            each method, pair of images and landmark) and `correspondence_summary.csv` and `.md` go.
        pictures: patients or files to draw, A first, then B1 ... Bn; None draws the first `number` patients.
        number: see `pictures`.
        queries: points in A, (row, column) in the file's pixels; None takes A's landmarks, and measures the errors of
            all landmarks between all patients.
        points: names of the landmarks to draw; None draws eight of them.
        maps: similarity maps drawn, of the first points.
        refine: steps between two tokens in which matches are looked for.
        groups: entries or labels of the items by which pairs are told apart in the summary, as same or other.
    """

    def __init__(
        self,
        images: EncodedImages,
        output_dir: str,
        pictures: Sequence[str] | None = None,
        number: int = 4,
        queries: Sequence[Sequence[float]] | None = None,
        points: Sequence[str] | None = None,
        maps: int = 2,
        refine: int = 4,
        groups: Sequence[str] = ("sex", "view"),
    ) -> None:
        self.images, self.output_dir = images, Path(output_dir)
        self.pictures, self.number, self.queries, self.points = pictures, number, queries, points
        self.maps, self.refine, self.groups = maps, refine, groups

    @errors_told()
    def run(self) -> Rows:
        """Write table and picture; returns the rows of the summary, none without landmarks."""
        chosen = self.images.choose(self.pictures, self.number)
        if len(chosen) < 2:
            raise ValueError("correspondence needs two images or more: name them in `pictures`, the first is A")
        marks = self.images.items[chosen[0]].get("landmarks") or {}
        if self.queries is None and not marks:
            raise ValueError(
                f"{self.images.items[chosen[0]]['source']} has no landmarks in the datalist: give points of it as "
                '--queries "[[row, column], ...]"'
            )
        summary: Rows = []
        used = sorted(set(chosen) | set(self.images.with_landmarks() if self.queries is None else ()))
        maps = {name: self.images.maps(name, used) for name in self.images.encoders}
        if self.queries is None:
            summary = self._measure(used, maps)
        self._draw([used.index(i) for i in chosen], chosen, maps)
        return summary

    def _measure(self, used: Sequence[int], maps: Mapping[str, Sequence[TokenMap]]) -> Rows:
        """The tables of all pairs of images with landmarks."""
        marks = [self.images.items[i].get("landmarks") or {} for i in used]
        rows = {name: landmark_errors(found, marks, self.refine) for name, found in maps.items()}
        rows["copied coordinates"] = landmark_errors(maps["trained"], marks, self.refine, copying=True)
        if not rows["trained"]:
            raise ValueError("no two patients have a landmark in common: give the landmarks of more images")
        write_csv(
            self.output_dir / "correspondence.csv",
            [{"method": name, **row} for name, found in rows.items() for row in found],
        )
        summary = summarise(rows)
        for key in self.groups:
            values = [self.images.group(i, key) for i in used]
            for word, same in (("same", True), ("other", False)):
                part = {
                    name: [r for r in found if (values[r["query_image"]] == values[r["target_image"]]) == same]
                    for name, found in rows.items()
                }
                if len(set(values)) > 1 and None not in values and part["trained"]:
                    summary += summarise(part, f"{word} {key}")
        path = write_table(self.output_dir / "correspondence_summary.csv", summary)
        logger.info("landmarks of one patient found in another, %s:\n%s", path, markdown_table(summary))
        return summary

    def _draw(self, places: Sequence[int], chosen: Sequence[int], maps: Mapping[str, Sequence[TokenMap]]) -> None:
        """The picture, and the matches in it; `places` are the chosen images' places in `maps`."""
        marks = [self.images.items[i].get("landmarks") or {} for i in chosen]
        names = self._drawn_points(marks[0])
        query = np.array([marks[0][n] for n in names] if self.queries is None else self.queries, float).reshape(-1, 2)
        found: dict[str, list[np.ndarray]] = {}
        for name in ("trained", "random_0"):
            vectors = tokens_at(maps[name][places[0]], query)
            found[name] = [match(vectors, refined(maps[name][b], self.refine))[0] for b in places[1:]]
        truth = None
        if self.queries is None:
            truth = [np.array([m.get(n, (np.nan, np.nan)) for n in names], float) for m in marks[1:]]
        shown = [refined(maps["trained"][place], self.refine) for place in places]
        vectors = tokens_at(shown[0], query)[: self.maps]
        cosines = [(match(vectors, m)[1], m.affine) for m in shown]
        similarity = {k: [(values[k], affine) for values, affine in cosines] for k in range(len(vectors))}
        rows: Rows = []
        for b, points in zip(chosen[1:], found["trained"]):
            item = self.images.items[b]
            for name, start, point in zip(names, query, points):
                place = {"row": start[0], "column": start[1], "found_row": point[0], "found_column": point[1]}
                rows.append({"point": name, "image": item["source"], "subject": item["subject"], **place})
        write_csv(self.output_dir / "matches.csv", rows)
        path = self.output_dir / "correspondence.png"
        named = {"trained": found["trained"], "random": found["random_0"]}
        pictures = [self.images.picture(i) for i in chosen]
        correspondence_figure(pictures, query, named, truth, similarity, path, names if self.queries is None else ())
        logger.info("drew %s", path)

    def _drawn_points(self, marks: Mapping[str, Any]) -> list[str]:
        """Names of the points that are drawn."""
        if self.queries is not None:
            return [str(k) for k in range(1, len(self.queries) + 1)]
        names = list(marks)
        if self.points is None:
            return [names[k] for k in np.linspace(0, len(names) - 1, min(8, len(names))).round().astype(int)]
        unknown = [name for name in self.points if name not in marks]
        if unknown:
            raise ValueError(f"there is no landmark {unknown[0]!r} in A; it has {', '.join(names)}")
        return list(self.points)


class LandmarkTest:
    """Whether a landmark's tokens lie together across patients: t-SNE, and numbers that need no eye.

    Args:
        images: the images and encoders; those with landmarks are used.
        output_dir: where `landmarks.png`, `landmarks.csv` and `.md` go.
        seed: of t-SNE.
    """

    def __init__(self, images: EncodedImages, output_dir: str, seed: int = 0) -> None:
        self.images, self.output_dir, self.seed = images, Path(output_dir), seed

    @errors_told()
    def run(self) -> Rows:
        """Write table and picture; returns the rows of the table."""
        used = self.images.with_landmarks()
        if len({str(self.images.items[i]["subject"]) for i in used}) < 2:
            raise ValueError(
                f"{len(used)} of {len(self.images.items)} images have `landmarks` in the datalist: give name -> "
                "[row, column] for at least two patients"
            )
        marks = [self.images.items[i]["landmarks"] for i in used]
        names = np.array([name for m in marks for name in m])
        subjects = np.array([str(self.images.items[i]["subject"]) for i, m in zip(used, marks) for _ in m])
        pixels = [np.array(list(m.values()), float) for m in marks]
        vectors = {
            name: normalize(np.concatenate([tokens_at(m, p) for m, p in zip(self.images.maps(name, used), pixels)]))
            for name in self.images.encoders
        }
        sizes = [self.images.items[i]["original_size"].numpy() for i in used]
        vectors["position alone"] = np.concatenate([(p + 0.5) / size for p, size in zip(pixels, sizes)])
        scores = {name: landmark_scores(z, names, subjects) for name, z in vectors.items()}
        table = method_table(scores)
        path = write_table(self.output_dir / "landmarks.csv", table)
        logger.info("landmarks known by their nearest neighbour, %s:\n%s", path, markdown_table(table))
        titles = {"trained": "trained", "random_0": "random", "position alone": "position alone"}
        drawn = {
            f"{title}: {scores[name]['nearest_accuracy']:.0%} known by\nthe nearest of other patients": vectors[name]
            for name, title in titles.items()
        }
        landmark_tsne(drawn, names, self.output_dir / "landmarks.png", self.seed)
        return table


def method_table(scores: Mapping[str, Mapping[str, float]]) -> Rows:
    """One row for each method; the random encoders as mean and sd."""
    random = [values for name, values in scores.items() if name.startswith("random_")]
    rows: Rows = [{"method": name, **scores[name]} for name in scores if not name.startswith("random_")]
    return rows + random_rows("method", random)
