"""What a network makes of matched views while it trains: restored voxels, prototypes in use, features that agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather
from torch import nn
from torch.nn import functional as F

__all__ = ["AlignmentQuality"]


class AlignmentQuality(Metric):
    """Whether both objectives of Alice are learned without a collapse, as a mapping of metrics for MONAI's evaluators.

    - `reconstruction_error`: squared error of the masked voxels, as a part of that of the best constant of each view,
      the mean of its masked voxels; 1 is no better than that, 0.5 and less is wanted;
    - `view_gap`: mean cosine of the pooled features of matched views (the teacher's, of whole views), minus that of
      views of different pairs and patients; NaN with a single pair;
    - for the terms `global` (views) and `patch` (tokens): `global_use`, the entropy of the teacher's mean assignment,
      and `global_entropy`, the mean entropy of its assignments, both as parts of log K: 0 is one prototype for all (a
      collapse), 1 is no preference for any, and a healthy `entropy` is well below the `use`;
    - `match_score`, the mean score of the pairs of different patients; `fallback_share`, how many pairs came about by a
      fall-back; `same_volume_share`, how many show the same volume twice.

    What the network does not give is left out. Sums are added up over the processes, so that every pair counts once.

    Args:
        loss: the training's loss, whose `terms` named `global` and `patch` know the centre and the temperature of the
            teacher's assignments (`losses.DistillationLoss`).
        output_transform: from the engine's output to the network's outputs and the targets.
        **kwargs: further arguments of ignite's metrics.
    """

    def __init__(
        self,
        loss: nn.Module,
        output_transform: Any = lambda output: (output["pred"], output["label"]),
        **kwargs: Any,
    ) -> None:
        terms: Any = getattr(loss, "terms", {})
        outputs = {"global": "teacher_cls", "patch": "teacher_aligned"}
        self.terms = {name: (terms[name], output) for name, output in outputs.items() if name in terms}
        super().__init__(output_transform=output_transform, **kwargs)

    def reset(self) -> None:
        """Forget the pairs of before."""
        self.sums: dict[str, torch.Tensor] = {}
        self.pooled: list[torch.Tensor] = []  # of each batch (N, 2, F), and of the same rows the patients (N, 2)
        self.patients: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self, output: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]) -> None:
        """Add a batch: the network's outputs and the targets of `PreparePairs`."""
        pred, target = output
        same = target["subject_1"] == target["subject_2"]
        scores = target["score"][~same].double()
        self._add("score", torch.stack([scores.sum(), _count(scores)]))
        self._add("fallback", torch.stack([target["fell_back"].double().sum(), _count(same)]))
        self._add("same_volume", torch.stack([same.double().sum(), _count(same)]))
        for number in (1, 2):
            if f"restored_{number}" in pred:
                found = _errors(pred[f"restored_{number}"], target[f"whole_{number}"], target[f"mask_{number}"])
                self._add("reconstruction", found)
        for term, (loss, name) in self.terms.items():
            if f"{name}_1" in pred:
                logits = torch.cat([pred[f"{name}_{number}"] for number in (1, 2)])
                assigned = loss.assignment(logits).flatten(0, -2).double()
                entropy = torch.special.entr(assigned).sum(dim=1)
                self._add(f"{term}_entropy", torch.stack([entropy.sum(), _count(entropy)]))
                self._add(f"{term}_use", torch.cat([assigned.sum(dim=0), _count(entropy)[None]]))
        pooled = "teacher_pooled" if "teacher_pooled_1" in pred else "pooled"
        self.pooled.append(torch.stack([pred[f"{pooled}_{number}"].float() for number in (1, 2)], dim=1))
        self.patients.append(torch.stack([target["subject_1"], target["subject_2"]], dim=1))

    def _add(self, name: str, values: torch.Tensor) -> None:
        found = values.detach().cpu()
        self.sums[name] = self.sums[name] + found if name in self.sums else found

    def completed(self, engine: Engine, name: str) -> None:
        """Write each value under its own name, one of which the metric is attached under."""
        engine.state.metrics.update(self.compute())

    def compute(self) -> dict[str, float]:
        """The metrics; NaN where no pair says anything of one."""
        several = idist.get_world_size() > 1
        # the same names on every process, in the same order
        sums: dict[str, Any] = dict(self.sums)
        for name in sums if several else ():
            sums[name] = torch.as_tensor(idist.all_reduce(sums[name].to(idist.device()))).cpu()
        metrics = {
            "view_gap": self._gap(),
            "match_score": _ratio(sums["score"]),
            "fallback_share": _ratio(sums["fallback"]),
            "same_volume_share": _ratio(sums["same_volume"]),
        }
        if "reconstruction" in sums:
            metrics["reconstruction_error"] = _ratio(sums["reconstruction"])
        for term in self.terms:
            if f"{term}_use" in sums:
                *totals, count = sums[f"{term}_use"]
                mean = torch.stack(totals) / count
                largest = math.log(len(mean))
                metrics[f"{term}_use"] = float(torch.special.entr(mean).sum()) / largest
                metrics[f"{term}_entropy"] = _ratio(sums[f"{term}_entropy"]) / largest
        return metrics

    def _gap(self) -> float:
        """Cosine of matched views less that of views of other pairs and patients."""
        pooled, patients = torch.cat(self.pooled), torch.cat(self.patients)
        if idist.get_world_size() > 1:
            pooled, patients = (
                evenly_divisible_all_gather(rows.to(idist.device()), concat=True) for rows in (pooled, patients)
            )
        first, second = F.normalize(pooled.cpu().double(), dim=2).unbind(dim=1)
        cosine = first @ second.T  # (pairs, pairs)
        own = torch.eye(len(cosine), dtype=torch.bool)
        mine, theirs = patients.cpu().unbind(dim=1)
        others = ~own & (mine[:, None] != theirs[None])
        return float(cosine[own].mean() - cosine[others].mean())


def _errors(restored: torch.Tensor, whole: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over masked voxels, the sums of the squared error and of the squared deviation from each view's mean; `(2,)`."""
    whole, hidden = whole.double().flatten(1), mask.expand_as(whole).flatten(1)
    count = hidden.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (whole * hidden).sum(dim=1, keepdim=True) / count
    error = (restored.double().flatten(1) - whole).square() * hidden
    return torch.stack([error.sum(), ((whole - mean).square() * hidden).sum()])


def _count(rows: torch.Tensor) -> torch.Tensor:
    """How many rows there are, beside a sum on the same device."""
    return torch.tensor(len(rows), dtype=torch.float64, device=rows.device)


def _ratio(pair: torch.Tensor) -> float:
    """A sum over its count; NaN for none."""
    return float(pair[0] / pair[1]) if pair[1] else math.nan
