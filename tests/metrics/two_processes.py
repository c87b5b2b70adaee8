"""What each of two gloo processes does in test_quality.py: the metric over its share of one validation set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.exceptions import NotComputableError

from anatomy_ssl.metrics.quality import EmbeddingQuality
from tests.metrics.cohort import cohort

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# Rows of each process, in another order than one process would have; in the second case one has nothing to validate.
SHARES: dict[str, tuple[list[int], list[int]]] = {
    "unequal": (list(range(0, 60, 3)), [row for row in range(60) if row % 3]),
    "one is empty": ([], list(range(60))),
}


def validation_rows() -> Batch:
    """A validation set in which the crops of one patient may lie in both processes."""
    emb = cohort(6, 10, noise=0.3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    subject = torch.tensor([2**60 + int(name[1:]) for name in emb.subject])  # does not survive a cast to float
    return torch.from_numpy(emb.embedding)[order], torch.from_numpy(emb.anatomical_position)[order], subject[order]


def fed(rows: Sequence[int], max_pairs: int = 100) -> EmbeddingQuality:
    """The metric after it has seen these rows in batches of 8."""
    metric = EmbeddingQuality(max_pairs=max_pairs)
    for batch in torch.tensor(list(rows)).split(8) if len(rows) else ():
        metric.update(tuple(column[batch] for column in validation_rows()))
    return metric


def work(rank: int, folder: str) -> None:
    """Run every case in process `rank` and save the results as `folder/RANK.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(folder, "init").as_uri(), rank=rank, world_size=2)
    results: dict[str, object] = {name: fed(shares[rank]).compute() for name, shares in SHARES.items()}
    try:
        fed([]).compute()
    except NotComputableError as error:
        results["nothing"] = str(error)
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
