"""Matches by planted tokens are exact, and errors are what loops say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anatomy_ssl.data.tokens import TokenMap
from anatomy_ssl.metrics.correspondence import (
    copied,
    landmark_errors,
    less_mean,
    match,
    measure,
    refined,
    summarise,
    tokens_at,
)


def planted(size: tuple[int, int], cell: float, subject: str, move: tuple[float, float] = (0, 0)) -> TokenMap:
    """Tokens that say nothing but where they are: directions that differ everywhere, the anatomy moved by `move`."""
    grid = (int(size[0] // cell), int(size[1] // cell))
    affine = np.array([[cell, 0, (cell - 1) / 2], [0, cell, (cell - 1) / 2], [0, 0, 1]])
    empty = TokenMap(
        np.zeros((1, *grid)), affine, np.array(size), np.full(2, cell), subject, subject, np.diag([2, 1, 1])
    )
    place = np.moveaxis(empty.position - np.array(move), -1, 0) / 100
    return replace(empty, tokens=np.concatenate([place, np.ones((1, *grid))]).astype(np.float32))


def test_position_only_tokens_match_exactly() -> None:
    """Whatever the size of the image that is searched, between the centres too."""
    a, b = planted((80, 60), 10, "a"), planted((70, 110), 10, "b", move=(7.5, -2.5))
    points = np.array([[14.5, 24.5], [44.5, 34.5], [37.0, 27.0]])
    found, cosine = match(tokens_at(a, points), refined(b, 4))
    np.testing.assert_allclose(found, points + [7.5, -2.5], atol=1e-3)
    assert cosine.shape == (3, 25, 41) and cosine.max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("factor", [1, 3])
def test_refined_tokens_are_those_interpolated_at_their_places(factor: int) -> None:
    m = planted((40, 50), 10, "a")
    m = replace(m, tokens=np.random.default_rng(0).normal(size=(6, *m.grid)).astype(np.float32))
    fine = refined(m, factor)
    at = tokens_at(m, fine.position.reshape(-1, 2))
    np.testing.assert_allclose(at, fine.tokens.reshape(6, -1).T, atol=1e-5)
    np.testing.assert_array_equal(fine.tokens[:, ::factor, ::factor], m.tokens)


def test_beyond_the_outermost_centres_tokens_go_on() -> None:
    m = planted((40, 50), 10, "a")
    np.testing.assert_allclose(tokens_at(m, np.array([[0, 0], [39, 49]])), m.tokens[:, [0, -1], [0, -1]].T, atol=1e-6)


def test_copying_is_exact_on_equal_frames_and_relative_on_others() -> None:
    a, b = planted((80, 60), 10, "a"), planted((160, 30), 10, "b")
    points = np.array([[3.0, 5.0], [-0.5, 59.5]])
    np.testing.assert_allclose(copied(points, a, a), points)
    np.testing.assert_allclose(copied(points, a, b), [[6.5, 2.25], [-0.5, 29.5]])


def test_less_mean_takes_away_what_all_tokens_share() -> None:
    maps = [planted((80, 60), 10, "a"), planted((40, 50), 10, "b")]
    tokens = np.concatenate([m.tokens.reshape(3, -1) for m in less_mean(maps)], axis=1)
    per_image = [m.tokens.reshape(3, -1).mean(axis=1) for m in less_mean(maps)]
    np.testing.assert_allclose(np.mean(per_image, axis=0), 0, atol=1e-6)
    assert tokens[:2].std() > 0.1 and np.abs(tokens[2]).max() < 1e-6


def cohort() -> tuple[list[TokenMap], list[dict[str, list[float]]]]:
    """Three patients; c lacks a landmark, and a has two images, which are not compared with each other."""
    maps = [
        planted((80, 60), 10, "a"),
        planted((80, 60), 10, "a", (5, 0)),
        planted((70, 90), 10, "b", (10, 10)),
        replace(planted((60, 60), 10, "c"), pixel_to_mm=None),
    ]
    marks = [{"x": [14.5, 24.5], "y": [34.5, 34.5]} for _ in range(4)]
    del marks[3]["y"]
    return maps, marks


@pytest.mark.parametrize("copying", [True, False])
def test_errors_are_those_of_loops(copying: bool) -> None:
    maps, marks = cohort()
    rows = landmark_errors(maps, marks, 2, copying)
    expected = []
    for a, start in enumerate(marks):
        for b, goal in enumerate(marks):
            if maps[a].subject == maps[b].subject:
                continue
            for name in start:
                if name not in goal:
                    continue
                if copying:
                    found = [
                        (start[name][k] + 0.5) / maps[a].image_size[k] * maps[b].image_size[k] - 0.5 for k in (0, 1)
                    ]
                else:
                    query, fine = tokens_at(maps[a], np.array([start[name]]))[0], refined(maps[b], 2)
                    tokens = fine.tokens.reshape(3, -1)
                    cosine = [query @ t / np.linalg.norm(query) / np.linalg.norm(t) for t in tokens.T]
                    found = fine.position.reshape(-1, 2)[int(np.argmax(cosine))]
                apart = np.subtract(found, goal[name])
                mm = float("nan") if b == 3 else float(np.hypot(2 * apart[0], apart[1]))
                expected.append((a, b, name, float(np.hypot(*apart)), float(np.hypot(*apart) / 10), mm))
    assert [(r["query_image"], r["target_image"], r["landmark"]) for r in rows] == [e[:3] for e in expected]
    for row, (*_, pixels, cells, mm) in zip(rows, expected):
        found = [row["error_pixels"], row["error_cells"], row["error_mm"]]
        assert found == pytest.approx([pixels, cells, mm], abs=1e-3, nan_ok=True)


def test_measure_without_spacing_knows_no_mm() -> None:
    b = planted((80, 60), 10, "b")
    errors = measure(np.array([[3.0, 4]]), np.array([[0.0, 0]]), b)
    assert (errors.pixels[0], errors.cells[0], errors.mm[0]) == pytest.approx((5, 0.5, np.hypot(6, 4)))
    assert np.isnan(measure(np.zeros((1, 2)), np.zeros((1, 2)), replace(b, pixel_to_mm=None)).mm).all()


def error_rows(values: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Rows of patients with the given errors in cells."""
    return [
        {"target": patient, "error_pixels": 10 * e, "error_cells": e, "error_mm": float("nan")}
        for patient, errors in values.items()
        for e in errors
    ]


def test_summary_is_paired_over_patients() -> None:
    rows = {
        "trained": error_rows({"a": [0.1, 0.3], "b": [0.2, 5], "c": [1]}),
        "copied": error_rows({"a": [1.2, 1.2], "b": [2.6, 4.6], "c": [2]}),
        "random_0": error_rows({"a": [3, 3], "b": [3, 3], "c": [3]}),
        "random_1": error_rows({"a": [5, 5], "b": [5, 5], "c": [5]}),
    }
    table = {row["method"]: row for row in summarise(rows)}
    assert table["trained"]["median_cells"] == pytest.approx(0.3)
    assert table["trained"]["within_a_cell"] == pytest.approx(0.8)
    assert np.isnan(table["trained"]["median_mm"])
    assert table["random, mean of 2"]["median_pixels"] == pytest.approx(40)
    assert table["random, sd of 2"]["median_cells"] == pytest.approx(2**0.5)
    # medians of patients: trained .2, 2.6, 1; copied 1.2, 3.6, 2; random 4
    assert table["trained - copied, patients"]["median_cells"] == pytest.approx(-1)
    assert table["trained - random, patients"]["median_cells"] == pytest.approx(np.mean([-3.8, -1.4, -3]))
    assert table["trained - random, patients"]["n"] == 3
