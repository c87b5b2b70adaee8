"""What each of two gloo processes does in test_alignment.py: the metric over its share of one validation set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from anatomy_ssl.losses.distillation import DistillationLoss
from anatomy_ssl.metrics.alignment import AlignmentQuality

K = 6
SHARES = ([0, 2, 4, 6, 8], [1, 3])


def loss(centre: bool = True) -> torch.nn.Module:
    """Holds the terms that the metric asks, with centres."""
    terms = {name: DistillationLoss(K, teacher_temperature=0.3) for name in ("global", "patch")}
    made = torch.nn.Module()
    made.terms = torch.nn.ModuleDict(terms)
    for number, term in enumerate(terms.values()):
        term.centre = torch.linspace(-1, 1, K) * (number + 1) * centre
    return made


def rows(number: int = 9) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and targets of pairs, some patients several times, one pair of one volume."""
    g = torch.Generator().manual_seed(0)
    pred: dict[str, Any] = {}
    target: dict[str, Any] = {"score": torch.rand(number, generator=g), "fell_back": torch.arange(number) % 3 == 0}
    for view in (1, 2):
        pred[f"teacher_cls_{view}"] = torch.randn(number, K, generator=g)
        pred[f"teacher_aligned_{view}"] = torch.randn(number, 4, K, generator=g)
        pred[f"teacher_pooled_{view}"] = torch.randn(number, 5, generator=g)
        pred[f"restored_{view}"] = torch.rand(number, 2, 4, 4, generator=g)
        target[f"whole_{view}"] = torch.rand(number, 2, 4, 4, generator=g)
        target[f"mask_{view}"] = torch.rand(number, 1, 4, 4, generator=g) > 0.3
        target[f"subject_{view}"] = (torch.arange(number) + view) % 4 + 2**60
    target["subject_2"][5] = target["subject_1"][5]
    return pred, target


def fed(numbers: Sequence[int]) -> AlignmentQuality:
    """The metric after it has seen these rows in batches of 2."""
    metric = AlignmentQuality(loss())
    for batch in torch.tensor(numbers).split(2):
        metric.update(tuple({name: value[batch] for name, value in part.items()} for part in rows()))
    return metric


def work(rank: int, folder: str) -> None:
    """Run in process `rank` and save the result as `folder/RANK.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(folder, "init").as_uri(), rank=rank, world_size=2)
    torch.save(fed(SHARES[rank]).compute(), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
