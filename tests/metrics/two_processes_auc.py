"""What each of two gloo processes does in test_auc.py: the metric over its share of one validation set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from anatomy_ssl.metrics.auc import MultiLabelAUC

SHARES: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "unequal": (range(0, 40, 3), [row for row in range(40) if row % 3]),
    "one is empty": (range(0), range(40)),
}


def fed(rows: Sequence[int]) -> MultiLabelAUC:
    """The metric after it has seen these rows, of which the last label is all ones."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 2, generator=generator), torch.ones(40, 2)
    labels[::2, 0] = 0
    labels[::5, 0] = torch.nan
    metric = MultiLabelAUC(["some", "all"])
    for batch in torch.tensor(list(rows)).split(8) if len(rows) else ():
        metric.update((logits[batch], labels[batch]))
    return metric


def work(rank: int, folder: str) -> None:
    """Run every case in process `rank` and save the results as `folder/RANK.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(folder, "init").as_uri(), rank=rank, world_size=2)
    torch.save({name: fed(shares[rank]).compute() for name, shares in SHARES.items()}, Path(folder, f"{rank}.pt"))
    dist.barrier()  # no process leaves while the other still reads from it
    dist.destroy_process_group()
