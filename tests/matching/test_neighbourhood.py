"""A matcher made robust: outliers are voted down, what moves together keeps its displacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from anatomy_ssl.matching.matcher import Matches
from anatomy_ssl.matching.neighbourhood import NeighbourhoodMatcher, ball

SHIFT = torch.tensor([3.0, -2.0, 5.0])


class Shifted:
    """Moves every point by `SHIFT`, and every third one to a place far away."""

    def __init__(self, outliers: bool = True, score: float = 0.9) -> None:
        self.outliers, self.score, self.asked = outliers, score, 0

    def __call__(self, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor) -> Matches:
        self.asked = len(points)
        found = points + SHIFT
        if self.outliers:
            found[::3] = torch.tensor([20.0, 20.0, 20.0])
        return Matches(found, torch.full((len(points),), self.score))


@pytest.fixture
def items(write_nifti: Callable[..., str]) -> list[dict[str, str]]:
    """Two volumes of 80 mm, from -40 to 40."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -40
    return [{"image": write_nifti(f"{n}.nii.gz", np.zeros((21, 21, 21), np.int16), affine)} for n in "ab"]


def test_outliers_are_voted_down(items: list[dict[str, str]]) -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [-10.0, 4.0, 7.0]])
    found = NeighbourhoodMatcher(Shifted(), points=30, radius=10.0)(*items, points)
    assert torch.allclose(found.points, points + SHIFT, atol=1e-4)
    assert torch.allclose(found.scores, torch.full((2,), 0.9))


def test_neighbours_outside_of_the_source_are_left_out(items: list[dict[str, str]]) -> None:
    matcher = Shifted(outliers=False)
    corner = torch.tensor([[-41.0, -41.0, -41.0]])
    found = NeighbourhoodMatcher(matcher, points=40, radius=20.0)(*items, corner)
    assert matcher.asked < 20
    assert torch.allclose(found.points, corner + SHIFT, atol=1e-4)


def test_a_match_outside_of_the_target_scores_nothing(items: list[dict[str, str]]) -> None:
    top = torch.tensor([[0.0, 0.0, 41.0]])
    found = NeighbourhoodMatcher(Shifted(outliers=False), points=4, radius=1.0)(*items, top)
    assert float(found.scores) == 0


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("number", [1, 7, 64, 300])
def test_neighbours_fill_the_ball(number: int, dims: int) -> None:
    points = ball(number, dims)
    assert points.shape == (number + 1, dims) and not points[0].any()
    radii = points.norm(dim=1)
    assert radii.max() <= 1
    if number == 300:
        assert float(points.mean(dim=0).abs().max()) < 0.03
        inner = float((radii < 0.5).float().mean())
        assert inner == pytest.approx(0.5**dims, abs=0.05)
    assert torch.equal(points, ball(number, dims))


def test_without_neighbours_there_is_nothing_to_do() -> None:
    with pytest.raises(ValueError, match="the matcher alone"):
        NeighbourhoodMatcher(Shifted(), points=0)
