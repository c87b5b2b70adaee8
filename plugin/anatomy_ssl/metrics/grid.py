"""How well a network orders cells and tells the same anatomy in two views, on held-out images."""

from __future__ import annotations

import math
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
    - `token_gap`: mean cosine of the tokens of cells that two views share, minus that of other cells of the same two
      views, in images whose first view has its true order;
    - `local_gap`: the same of the local head's embeddings, as the loss compares them; left out without that head;
    - `token_spread`: mean standard deviation of the tokens' features; 0 is a collapse.

    Sums are added up over the processes, so that every image counts once.

    Args:
        centre: take the mean of an image's local embeddings, both views, out of them first, as the loss does that is
            given `centre` (`losses.LocalConsistencyLoss`). Tokens are never centred.
        output_transform: from the engine's output to the network's outputs and the targets.
        **kwargs: further arguments of ignite's metrics.
    """

    def __init__(
        self,
        centre: bool = False,
        output_transform: Any = lambda output: (output["pred"], output["label"]),
        **kwargs: Any,
    ) -> None:
        self.centre = centre
        super().__init__(output_transform=output_transform, **kwargs)

    def reset(self) -> None:
        """Forget the images of before."""
        # sum and count of each: correct places, spread of a batch, then cosines of pairs and of others by kind of token
        self.sums = {name: torch.zeros(2, dtype=torch.float64) for name in ("order", "spread")}
        self.cells = 0

    def update(self, output: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]) -> None:
        """Add a batch: the network's outputs and the targets of `PrepareGridViews`."""
        pred, target = output
        shuffled, self.cells = ~target["ordered"], target["match"].shape[1]
        if "order" in pred:
            self._add("order", pred["order"][shuffled].argmax(dim=2) == target["target_order"][shuffled])
        self._add("spread", pred["tokens_1"].float().flatten(0, 1).std(dim=0).mean()[None])
        for kind, name in (("token", "tokens"), ("local", "local")):
            if f"{name}_1" in pred:
                views = torch.stack([pred[f"{name}_1"], pred[f"{name}_2"]]).float()  # (2, N, T, F)
                if self.centre and kind == "local":
                    views = views - views.mean(dim=(0, 2), keepdim=True)
                same, others = _cosines(views[0], views[1], target["match"], target["ordered"])
                self._add(f"{kind}_same", same)
                self._add(f"{kind}_others", others)

    def _add(self, name: str, values: torch.Tensor) -> None:
        found = torch.tensor([float(values.detach().double().sum()), values.numel()], dtype=torch.float64)
        self.sums[name] = self.sums.get(name, torch.zeros(2, dtype=torch.float64)) + found

    def completed(self, engine: Engine, name: str) -> None:
        """Write each value under its own name, one of which the metric is attached under."""
        engine.state.metrics.update(self.compute())

    def compute(self) -> dict[str, float]:
        """The metrics; NaN where no image says anything of one."""
        sums: Any = torch.stack(list(self.sums.values()))
        sums = idist.all_reduce(sums.to(idist.device())) if idist.get_world_size() > 1 else sums
        means = {name: float(total / count) if count else math.nan for name, (total, count) in zip(self.sums, sums)}
        gaps = {
            f"{kind}_gap": means[f"{kind}_same"] - means[f"{kind}_others"]
            for kind in ("token", "local")
            if f"{kind}_same" in means
        }
        accuracy = means["order"]
        order = {"order_accuracy": accuracy, "order_times_chance": accuracy * self.cells}
        return {**order, **gaps, "token_spread": means["spread"]}


def _cosines(
    first: torch.Tensor, second: torch.Tensor, match: torch.Tensor, ordered: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of cells that two views share, and of those cells with the others; tokens `(N, T, F)`, `match` `(N, T)`."""
    first, second = (F.normalize(tokens, dim=2)[ordered] for tokens in (first, second))
    cosine = torch.einsum("nif,njf->nij", first, second)  # (N, T, T)
    same = match[ordered][:, :, None] == torch.arange(match.shape[1], device=match.device)
    shown = (match[ordered] >= 0)[:, :, None].expand_as(same)
    return cosine[same], cosine[shown & ~same]
