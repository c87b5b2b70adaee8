"""How well a network orders cells and tells the same anatomy in two views, on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch.nn import functional as F

__all__ = ["GridQuality"]


class GridQuality(Metric):
    """Order accuracy and cell matching, as a mapping of metrics for MONAI's evaluators.

    - `order_accuracy`: share of places whose cell is named, in shuffled images only (in others the answer is always the
      place itself);
    - `order_times_chance`: the same times the number of cells;
    - `cell_gap`: mean cosine of the tokens of cells that two views share, minus that of other cells of the same two
      views, in images whose first view has its true order; embedding of the local head where there is one, else tokens;
    - `token_spread`: mean standard deviation of the tokens' features; 0 is a collapse.

    Sums are added up over the processes, so that every image counts once.
    """

    def __init__(self, output_transform: Any = lambda output: (output["pred"], output["label"]), **kwargs: Any) -> None:
        super().__init__(output_transform=output_transform, **kwargs)

    def reset(self) -> None:
        """Forget the images of before."""
        # correct, shuffled places, cosine of pairs, pairs, cosine of others, others, spread, batches
        self.sums = torch.zeros(8, dtype=torch.float64)
        self.cells = 0

    def update(self, output: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]) -> None:
        """Add a batch: the network's outputs and the targets of `PrepareGridViews`."""
        pred, target = output
        ordered, match = target["ordered"], target["match"]
        self.cells = match.shape[1]
        parts = torch.zeros(8, dtype=torch.float64)
        if "order" in pred and bool((~ordered).any()):
            right = pred["order"][~ordered].argmax(dim=2) == target["target_order"][~ordered]
            parts[0], parts[1] = float(right.sum()), right.numel()
        name = "local" if "local_1" in pred else "tokens"
        first, second = (F.normalize(pred[f"{name}_{view}"].float(), dim=2)[ordered] for view in (1, 2))
        cosine = torch.einsum("nif,njf->nij", first, second)  # (N, T, T)
        same = match[ordered][:, :, None] == torch.arange(match.shape[1], device=match.device)
        shown = (match[ordered] >= 0)[:, :, None].expand_as(same)
        for place, chosen in ((2, same), (4, shown & ~same)):
            parts[place], parts[place + 1] = float(cosine[chosen].double().sum()), int(chosen.sum())
        parts[6], parts[7] = float(pred["tokens_1"].float().flatten(0, 1).std(dim=0).mean()), 1
        self.sums += parts

    def completed(self, engine: Engine, name: str) -> None:
        """Write each value under its own name, one of which the metric is attached under."""
        engine.state.metrics.update(self.compute())

    def compute(self) -> dict[str, float]:
        """The metrics; NaN where no image says anything of one."""
        sums: Any = idist.all_reduce(self.sums.to(idist.device())) if idist.get_world_size() > 1 else self.sums
        means = [float(sums[i] / sums[i + 1]) if sums[i + 1] else float("nan") for i in (0, 2, 4, 6)]
        return {
            "order_accuracy": means[0],
            "order_times_chance": means[0] * self.cells,
            "cell_gap": means[1] - means[2],
            "token_spread": means[3],
        }
