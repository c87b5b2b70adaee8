"""How well a dense embedding finds the points of one view in another, on held-out images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from ignite.metrics import Metric

from anatomy_ssl.losses.pixel_contrast import at_points

__all__ = ["PointError"]


class PointError(Metric):
    """Distance from a point's best match in the other patch to the truth, as a mapping of metrics.

    - `point_hits`: share of points whose best match lies within two steps of the fine map;
    - `point_error`: mean distance in voxels of a patch.

    The best match has the largest mean of the fine cosine and the cosine of the coarse map interpolated to the fine
    one, as in matching (SAM, Yan et al., TMI 2022, section 3.3). Sums are added up over the processes.

    Args:
        fine_stride: voxels.
        coarse_stride: voxels.
        output_transform: from the engine's output to the network's outputs and the targets.
        **kwargs: further arguments of ignite's metrics.
    """

    def __init__(
        self,
        fine_stride: int,
        coarse_stride: int,
        output_transform: Any = lambda output: (output["pred"], output["label"]),
        **kwargs: Any,
    ) -> None:
        self.fine_stride, self.coarse_stride = fine_stride, coarse_stride
        super().__init__(output_transform=output_transform, **kwargs)

    def reset(self) -> None:
        """Forget the images of before."""
        self.sums = torch.zeros(3, dtype=torch.float64)

    def update(self, output: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]) -> None:
        """Add a batch: the maps of `AnatomicalEmbedding` and the targets of `PreparePatches`."""
        pred, target = output
        fine, coarse, points = pred["fine"].float(), pred["coarse"].float(), target["points"].float()
        half = len(points) // 2
        axes = [torch.arange(n, device=fine.device) for n in fine.shape[2:]]
        index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2).float() * self.fine_stride
        queries = [
            at_points(m[:half], points[:half] / stride)
            for m, stride in ((fine, self.fine_stride), (coarse, self.coarse_stride))
        ]
        for i in range(half):
            wide = at_points(coarse[half + i][None], index[None] / self.coarse_stride)[0]
            similar = queries[0][i] @ F.normalize(fine[half + i].flatten(1), dim=0) + queries[1][i] @ wide.T
            error = (index[similar.argmax(dim=1)] - points[half + i]).norm(dim=1).double()
            hits = (error <= 2 * self.fine_stride).sum()
            self.sums += torch.stack([error.sum(), hits.double(), hits.new_tensor(len(error)).double()]).cpu()

    def completed(self, engine: Engine, name: str) -> None:
        """Write each value under its own name, one of which the metric is attached under."""
        engine.state.metrics.update(self.compute())

    def compute(self) -> dict[str, float]:
        """The metrics; NaN without points."""
        sums: Any = self.sums
        sums = idist.all_reduce(sums.to(idist.device())) if idist.get_world_size() > 1 else sums
        error, hits, count = (float(value) for value in sums)
        return {
            "point_hits": hits / count if count else math.nan,
            "point_error": error / count if count else math.nan,
        }
