"""What a matcher is: points in one volume to the same anatomy in another, millimetres to millimetres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["Matcher", "Matches", "round_trip"]


@dataclass(frozen=True, eq=False)
class Matches:
    """Where points were found.

    Args:
        points: `(N, D)` float32 world mm (RAS+) in the target.
        scores: `(N,)` float32, higher is better and 1 is perfect; 0 or lower where the match lies outside of the
            target's field of view.
    """

    points: torch.Tensor
    scores: torch.Tensor


class Matcher(Protocol):
    """Anything that is called like this; `_target_` in a config names it.

    A matcher may also have `similarity(source, target, point)`, see `anatomy_ssl.figures.similarity`.
    """

    def __call__(self, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor) -> Matches:
        """Find points of one volume in another.

        Args:
            source: item of a datalist, with the path of its volume under `image`.
            target: likewise.
            points: `(N, D)` world mm (RAS+) in the source.

        Returns:
            one match for each point, in their order.

        Raises:
            ValueError: a point lies outside of the source.
        """
        ...


def round_trip(
    matcher: Matcher, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor
) -> tuple[Matches, torch.Tensor]:
    """Match there and back: a wrong match seldom leads back to where it came from.

    Args:
        matcher: finds points.
        source: the item that the points lie in.
        target: the item that they are looked for in.
        points: `(N, D)` world mm in the source.

    Returns:
        the matches in the target; and how far from the query each of them leads back, `(N,)` float32 mm, infinite for
        matches outside of the target.
    """
    there = matcher(source, target, points)
    distance = torch.full((len(points),), torch.inf)
    inside = there.scores > 0
    if inside.any():
        back = matcher(target, source, there.points[inside])
        distance[inside] = torch.linalg.vector_norm(back.points - points[inside].to(back.points), dim=1)
    return there, distance
