"""The same anatomy in another image by the nearest token, and how far from the truth that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nibabel.affines import apply_affine

from anatomy_ssl.data.tokens import TokenMap
from anatomy_ssl.metrics.statistics import paired_t_test, random_rows

__all__ = [
    "Errors",
    "copied",
    "landmark_errors",
    "less_mean",
    "match",
    "measure",
    "refined",
    "summarise",
    "tokens_at",
]

Landmarks = Mapping[str, Sequence[float]]
UNITS = ("pixels", "cells", "mm")


@dataclass(frozen=True, eq=False)
class Errors:
    """Distances `(N,)` of N points from the truth; `mm` is NaN where the file has no spacing."""

    pixels: np.ndarray
    cells: np.ndarray
    mm: np.ndarray


def less_mean(maps: Sequence[TokenMap]) -> list[TokenMap]:
    """The maps less the mean of all their tokens, which says nothing of where a token lies, as float32."""
    mean = np.mean([m.tokens.reshape(len(m.tokens), -1).mean(axis=1, dtype=np.float64) for m in maps], axis=0)
    return [
        replace(m, tokens=(m.tokens - mean.reshape(-1, *[1] * (m.tokens.ndim - 1))).astype(np.float32)) for m in maps
    ]


def refined(tokens: TokenMap, factor: int) -> TokenMap:
    """The map with `factor` steps from each token to the next, linearly interpolated: matches finer than a cell."""
    size = [(n - 1) * factor + 1 for n in tokens.grid]
    mode = "trilinear" if len(size) == 3 else "bilinear"
    values = F.interpolate(torch.from_numpy(tokens.tokens)[None].float(), size=size, mode=mode, align_corners=True)
    affine = tokens.affine @ np.diag([*[1 / factor] * len(size), 1.0])
    return replace(tokens, tokens=values[0].numpy(), affine=affine)


def tokens_at(tokens: TokenMap, pixels: np.ndarray) -> np.ndarray:
    """Tokens `(N, F)` at pixels `(N, D)` of the file, linearly interpolated; the outermost ones beyond the centres.

    Raises:
        ValueError: a point lies outside of the image.
    """
    last = np.maximum(np.array(tokens.grid) - 1, 1)
    place = torch.from_numpy(tokens.index_of(pixels) / last * 2 - 1).float().flip(1)  # (N, D), fastest axis first
    place = place.view(1, -1, *[1] * (place.shape[1] - 1), place.shape[1])
    values = F.grid_sample(
        torch.from_numpy(tokens.tokens)[None].float(), place, padding_mode="border", align_corners=True
    )
    return values.flatten(2)[0].T.numpy()


def match(query: np.ndarray, target: TokenMap) -> tuple[np.ndarray, np.ndarray]:
    """The token of an image that is most like each query.

    Args:
        query: `(N, F)`.
        target: where to look.

    Returns:
        pixels `(N, D)` of the best tokens' centres, and the cosine of each query and each token, `(N, *grid)`.
    """
    tokens = F.normalize(torch.from_numpy(target.tokens).float().flatten(1), dim=0)  # (F, T)
    cosine = (F.normalize(torch.from_numpy(query).float(), dim=1) @ tokens).numpy()
    index = np.stack(np.unravel_index(cosine.argmax(axis=1), target.grid), axis=1)
    return apply_affine(target.affine, index), cosine.reshape(-1, *target.grid)


def copied(pixels: np.ndarray, query: TokenMap, target: TokenMap) -> np.ndarray:
    """The same place `(N, D)` relative to the frame of another image: what a match has to beat."""
    return (np.asarray(pixels) + 0.5) / query.image_size * target.image_size - 0.5


def measure(found: np.ndarray, truth: np.ndarray, target: TokenMap) -> Errors:
    """Distance of points `(N, D)` from the truth `(N, D)`, all in the target's pixels."""
    apart = np.asarray(found) - np.asarray(truth)
    pixels = np.linalg.norm(apart, axis=1)
    cells = np.linalg.norm(apart / target.cell_size, axis=1)
    if target.pixel_to_mm is None:
        return Errors(pixels, cells, np.full_like(pixels, np.nan))
    return Errors(pixels, cells, np.linalg.norm(apart @ target.pixel_to_mm[:-1, :-1].T, axis=1))


def landmark_errors(
    maps: Sequence[TokenMap], landmarks: Sequence[Landmarks], factor: int, copying: bool = False
) -> list[dict[str, Any]]:
    """Find every landmark of every image in every other patient's.

    Args:
        maps: one for each image.
        landmarks: name -> (row, column) in pixels of each image.
        factor: see `refined`; of the images that are searched.
        copying: take the place relative to the frame instead of the nearest token.

    Returns:
        one row for each pair of images and landmark that both have: query, target (subjects), query_image,
        target_image (numbers), landmark, the match and the truth, and the error in each unit.
    """
    fine = [] if copying else [refined(m, factor) for m in maps]
    rows = []
    for a, b in ((a, b) for a in range(len(maps)) for b in range(len(maps))):
        names = [name for name in landmarks[a] if name in landmarks[b]]
        if maps[a].subject == maps[b].subject or not names:
            continue
        start, truth = (np.array([marks[name] for name in names], float) for marks in (landmarks[a], landmarks[b]))
        found = copied(start, maps[a], maps[b]) if copying else match(tokens_at(maps[a], start), fine[b])[0]
        errors = measure(found, truth, maps[b])
        for k, name in enumerate(names):
            pair = {"query": maps[a].subject, "target": maps[b].subject, "query_image": a, "target_image": b}
            place = {"row": found[k, 0], "column": found[k, 1], "true_row": truth[k, 0], "true_column": truth[k, 1]}
            error = {f"error_{unit}": float(getattr(errors, unit)[k]) for unit in UNITS}
            rows.append({**pair, "landmark": name, **{key: round(float(v), 2) for key, v in place.items()}, **error})
    return rows


def summarise(rows: Mapping[str, Sequence[Mapping[str, Any]]], pairs: str = "all") -> list[dict[str, Any]]:
    """What `landmark_errors` comes to for each method, and the first method's difference from each other.

    Args:
        rows: method -> its rows. Methods `random_0`, `random_1`, ... become one, with mean and sd over them.
        pairs: which pairs of images these are, for the table.

    Returns:
        rows: median error in each unit and the share of landmarks within one cell; then paired differences, over the
        patients that were searched, of their median errors in cells, with a 95% interval and a t-test.
    """
    table: list[dict[str, Any]] = []
    first, *others = rows
    random = [name for name in rows if name.startswith("random_")]
    for name in rows:
        if name not in random:
            table.append({"pairs": pairs, "method": name, "n": len(rows[name]), **_medians(rows[name])})
    if random:
        table += [{"pairs": pairs, **row} for row in random_rows("method", [_medians(rows[name]) for name in random])]
    patients = {name: _per_patient(rows[name]) for name in rows}
    baselines = {name: patients[name] for name in others if name not in random}
    if random:
        baselines["random"] = {p: float(np.mean([patients[name][p] for name in random])) for p in patients[first]}
    for name, baseline in baselines.items():
        if len(baseline) > 1:
            test = paired_t_test([patients[first][p] for p in baseline], list(baseline.values()))
            found = {key: test[key] for key in ("ci_low", "ci_high", "p")}
            difference = {"n": test["n"], "median_cells": test["difference"], **found}
            table.append({"pairs": pairs, "method": f"{first} - {name}, patients", **difference})
    return table


def _medians(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values = {unit: np.array([row[f"error_{unit}"] for row in rows]) for unit in UNITS}
    known = {unit: v[~np.isnan(v)] for unit, v in values.items()}
    medians = {f"median_{unit}": float(np.median(v)) if len(v) else float("nan") for unit, v in known.items()}
    return {**medians, "within_a_cell": float((values["cells"] <= 1).mean())}


def _per_patient(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Target patient -> median error in cells."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["target"], []).append(row["error_cells"])
    return {patient: float(np.median(errors)) for patient, errors in found.items()}
