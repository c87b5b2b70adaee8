"""Any matcher, made robust by what lies around a point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from scipy.stats import qmc

from anatomy_ssl.matching.frame import read_frame
from anatomy_ssl.matching.matcher import Matcher, Matches

__all__ = ["NeighbourhoodMatcher"]


class NeighbourhoodMatcher:
    """Matches a point together with points around it, and moves it by the median of their displacements.

    Anatomy is locally rigid: where one point is taken for another organ's, most of its neighbours are not. Costs
    `points + 1` matches for each query.

    Args:
        matcher: finds single points.
        points: neighbours of each point, spread evenly over a ball (the same for every query).
        radius: of the ball, in mm. Neighbours outside of the source are left out.
        min_score: neighbours with a lower score have no say, unless all have.

    A call gives the moved points with the median score of what had a say.

    Raises:
        ValueError: if there are no neighbours or the radius is not positive.
    """

    def __init__(self, matcher: Matcher, points: int = 64, radius: float = 24.0, min_score: float = 0.0) -> None:
        if points < 1 or radius <= 0:
            raise ValueError(f"points {points} and radius {radius} mm must be positive: or use the matcher alone")
        self.matcher, self.points, self.radius, self.min_score = matcher, points, radius, min_score

    def __call__(self, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor) -> Matches:
        """Match points `(N, D)` in world mm; see the class."""
        points = torch.as_tensor(points).float()
        offsets = ball(self.points, points.shape[1]) * self.radius  # the first one is the point itself
        cloud = points[:, None] + offsets  # (N, 1 + M, D)
        flat = cloud.flatten(0, 1)
        usable = read_frame(source).contains(flat)
        usable[:: len(offsets)] = True  # a query outside is the matcher's to refuse
        found = self.matcher(source, target, flat[usable])
        moves = torch.full_like(flat, torch.nan)
        scores = torch.full((len(flat),), torch.nan)
        moves[usable], scores[usable] = found.points - flat[usable], found.scores
        moves, scores = moves.view_as(cloud), scores.view(cloud.shape[:2])
        voting = scores > self.min_score
        voting = torch.where(voting.any(dim=1, keepdim=True), voting, ~scores.isnan())
        moves = moves.masked_fill(~voting[:, :, None], torch.nan).nanmedian(dim=1).values
        matched = points + moves
        scores = scores.masked_fill(~voting, torch.nan).nanmedian(dim=1).values
        outside = ~read_frame(target).contains(matched)
        return Matches(matched, scores.masked_fill(outside, 0.0))


def ball(number: int, dims: int) -> torch.Tensor:
    """Points `(1 + number, D)` in the unit ball, evenly spread: the centre, then a fixed low-discrepancy sequence."""
    # a ball fills more than half of its cube up to three axes
    cube = torch.from_numpy(qmc.Halton(dims, scramble=False).random(16 + 4 * number)[1:] * 2 - 1).float()
    inside = cube[torch.linalg.vector_norm(cube, dim=1) <= 1][:number]
    return torch.cat([torch.zeros(1, dims), inside])
