"""The same place, untouched or with the bodies' centres laid upon each other: what any matcher has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from monai.transforms import Compose, Orientationd

from anatomy_ssl.matching.frame import read_frame, require_inside
from anatomy_ssl.matching.matcher import Matches
from anatomy_ssl.matching.recent import Recent, item_key
from anatomy_ssl.transforms.load import LoadVolumed
from anatomy_ssl.transforms.points import ForegroundPointsd

__all__ = ["WorldMatcher"]


class WorldMatcher:
    """Takes a point's own coordinates for its match.

    Scores are 1 inside the target's field of view and 0 outside.

    Args:
        align: None for scans in one frame, such as phantoms, follow-ups on one table, or registered scans; "centre"
            moves points by the difference of the bodies' centres (middle of the bounding box of what is brighter than
            Otsu's threshold), for scans whose origin says nothing.

    Raises:
        ValueError: `align` is something else.
    """

    def __init__(self, align: Literal["centre"] | None = None) -> None:
        if align not in (None, "centre"):
            raise ValueError(f"align is None or 'centre', not {align!r}")
        self.align = align
        self._centres: Recent[torch.Tensor] = Recent(4096)

    def __call__(self, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor) -> Matches:
        """See `Matcher`."""
        require_inside(source, points)
        found = points.to(torch.float64)
        if self.align == "centre":
            dims = found.shape[1]
            found = found + self._centre(target, dims) - self._centre(source, dims)
        return Matches(found.float(), read_frame(target).contains(found).float())

    def _centre(self, item: Mapping[str, Any], dims: int) -> torch.Tensor:
        """Middle of the body `(D,)` in world mm, float64."""
        return self._centres.get((item_key(item), dims), lambda: _body_centre(item, dims))


def _body_centre(item: Mapping[str, Any], dims: int) -> torch.Tensor:
    """Read the volume and find the middle of the body's bounding box."""
    load = [
        LoadVolumed("image", spatial_dims=dims, channels=None),
        # one orientation, one grid of points, however the volume is stored
        Orientationd("image", axcodes="RAS"[:dims], labels=None),
        ForegroundPointsd("image"),
    ]
    body = Compose(load)({"image": item["image"]})["foreground"].to(torch.float64)
    return (body.amin(0) + body.amax(0)) / 2
