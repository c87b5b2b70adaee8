"""What each of two gloo processes does in test_gather.py: every loss on its share of one batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anatomy_ssl.losses import (
    BarlowTwinsLoss,
    CoordinateRegressionLoss,
    DistillationLoss,
    GlobalConsistencyLoss,
    LocalConsistencyLoss,
    MaskedReconstructionLoss,
    MultiLabelLoss,
    NTXentLoss,
    PhysicalDistanceLoss,
    WeightedSumLoss,
    all_gather_rows,
    row_counts,
    sum_over_processes,
)

CROPS = 12
# Unequal shares: the losses have to weigh rows and pairs of both processes alike.
SHARES = (slice(0, 8), slice(8, CROPS))
EVERYTHING = slice(0, CROPS)
SUBJECTS = {
    "subjects": (0, 1, 0, 1, 0, 7, 1, 7, 3, 3, 3, 4),
    "no pair in process 1": (0, 1, 0, 1, 0, 7, 1, 7, 2, 3, 4, 5),
}

Case = Callable[[nn.Module, slice], Tensor]


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3).double()


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    view_1 = torch.randn(CROPS, 5, generator=generator, dtype=torch.float64)
    view_2 = view_1 + torch.randn(CROPS, 5, generator=generator, dtype=torch.float64)
    return view_1, view_2, torch.rand(CROPS, 3, generator=generator, dtype=torch.float64) * 200


def _distance(pairs: str, subjects: str) -> Case:
    def case(model: nn.Module, rows: slice) -> Tensor:
        view, _, position = _batch()
        subject = torch.tensor(SUBJECTS[subjects])[rows]
        return PhysicalDistanceLoss(50.0, pairs)(model(view[rows]), position[rows], subject)

    return case


def _views(loss: nn.Module) -> Case:
    def case(model: nn.Module, rows: slice) -> Tensor:
        view_1, view_2, _ = _batch()
        return loss(*model(torch.cat([view_1[rows], view_2[rows]])).chunk(2))

    return case


def _coordinate(model: nn.Module, rows: slice) -> Tensor:
    view, _, position = _batch()
    return CoordinateRegressionLoss(50.0)(model(view[rows]), position[rows])


def _weighted_sum(model: nn.Module, rows: slice) -> Tensor:
    view_1, view_2, position = _batch()
    one, two = model(torch.cat([view_1[rows], view_2[rows]])).chunk(2)
    loss = WeightedSumLoss(
        {"distance": PhysicalDistanceLoss(), "barlow": BarlowTwinsLoss()},
        {"distance": ["mean", "position", "subject"], "barlow": ["one", "two"]},
        {"barlow": 10.0},
    )
    targets = {"position": position[rows], "subject": torch.tensor(SUBJECTS["no pair in process 1"])[rows]}
    return loss({"one": one, "two": two, "mean": (one + two) / 2}, targets)


def _global_consistency(centre: bool) -> Case:
    def case(model: nn.Module, rows: slice) -> Tensor:
        view_1, view_2, _ = _batch()
        one, two = model(torch.cat([view_1[rows], view_2[rows]])).chunk(2)
        return GlobalConsistencyLoss(centre)(one, two, two.detach(), one.detach().flip(1))

    return case


def _local_consistency(reduction: str, pairs_in_process_1: bool, centre: bool = False) -> Case:
    """Four cells an image; the images of process 1 have no pair, or other numbers of pairs."""

    def case(model: nn.Module, rows: slice) -> Tensor:
        view_1, view_2, _ = _batch()
        one, two = (torch.stack([model(view[rows] * k) for k in range(1, 5)], dim=1) for view in (view_1, view_2))
        match = (torch.arange(4) + torch.arange(CROPS)[:, None]) % 6
        match[match > 3] = -1
        ordered = torch.arange(CROPS) % 3 > 0
        if not pairs_in_process_1:
            ordered[SHARES[1]] = False
        loss = LocalConsistencyLoss(reduction, centre)
        return loss(one, two, two.detach().flip(2), one.detach().flip(2), match[rows], ordered[rows])

    return case


def _distillation(across: bool) -> Case:
    """The second of two steps, which has the centre that the first has found in the whole batch."""

    def case(model: nn.Module, rows: slice) -> Tensor:
        view_1, view_2, _ = _batch()
        one, two = model(torch.cat([view_1[rows], view_2[rows]])).chunk(2)
        loss = DistillationLoss(3, 0.5, 0.3, across=across)
        loss(one, two, two.cos(), one.sin())
        return loss(one, two, two.cos(), one.sin())

    return case


def _masked(masked_in_process_1: bool) -> Case:
    """Images of one pixel a channel, of which some, or in process 1 all, were seen."""

    def case(model: nn.Module, rows: slice) -> Tensor:
        view_1, view_2, position = _batch()
        mask = torch.arange(CROPS) % 5 < 2
        if not masked_in_process_1:
            mask[SHARES[1]] = False
        views = model(torch.cat([view_1[rows], view_2[rows]])).chunk(2)
        return MaskedReconstructionLoss()(*views, position[rows], position[rows] / 100, *[mask[rows, None]] * 2)

    return case


def _multi_label(exclusive: bool, known_in_process_1: bool) -> Case:
    """Three labels an image, of which some, or in process 1 all, are not known."""

    def case(model: nn.Module, rows: slice) -> Tensor:
        target = torch.eye(3, dtype=torch.float64).repeat(CROPS // 3, 1)
        target[::5, 0] = target[2, 1] = torch.nan
        if not known_in_process_1:
            target[SHARES[1]] = torch.nan
        return MultiLabelLoss([1.0, 2.0, 3.0], exclusive)(model(_batch()[0][rows]), target[rows])

    return case


def _gathered_with_different_losses(model: nn.Module, rows: slice) -> Tensor:
    """Each process weighs the gathered rows differently; the whole batch has the average of both weightings."""
    gathered = all_gather_rows(model(_batch()[0][rows]))
    weight = torch.linspace(0, 1, CROPS, dtype=torch.float64)[:, None]
    if rows == EVERYTHING:
        weight = (weight + 4 * weight**2) / 2
    elif rows == SHARES[1]:
        weight = 4 * weight**2
    return (weight * gathered.sin()).sum()


CASES: dict[str, Case] = {
    "distance": _distance("same_subject", "subjects"),
    "distance, no pair in process 1": _distance("same_subject", "no pair in process 1"),
    "distance, all pairs": _distance("all", "subjects"),
    "barlow": _views(BarlowTwinsLoss(0.3)),
    "ntxent": _views(NTXentLoss()),
    "coordinate": _coordinate,
    "weighted sum": _weighted_sum,
    "global consistency": _global_consistency(False),
    "global consistency, centred": _global_consistency(True),
    "local consistency": _local_consistency("pairs", True),
    "local consistency, centred": _local_consistency("pairs", True, centre=True),
    "local consistency by images": _local_consistency("images", True),
    "local consistency, no pair in process 1": _local_consistency("pairs", False),
    "distillation": _distillation(False),
    "distillation across views": _distillation(True),
    "masked reconstruction": _masked(True),
    "masked reconstruction, none in process 1": _masked(False),
    "labels": _multi_label(False, True),
    "labels, none in process 1": _multi_label(False, False),
    "exclusive labels": _multi_label(True, True),
    "gathered rows": _gathered_with_different_losses,
}


def gradients(model: nn.Module, case: Case, rows: slice) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of `rows` and the gradients of the model's parameters."""
    model.zero_grad()
    loss = case(model, rows)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def _collectives(rank: int) -> dict[str, object]:
    rows = 3 if rank == 0 else 0
    summed = torch.full((2,), rank + 1.0, requires_grad=True)
    total = sum_over_processes(summed)
    ((rank + 1) * total.sum()).backward()
    return {
        "counts": row_counts(rows, "cpu"),
        "integers": all_gather_rows(torch.arange(rows)),
        "volumes": all_gather_rows(torch.full((2 - rank, 2, 2), float(rank), dtype=torch.bfloat16)),
        "sum": total.detach(),
        "gradient of sum": summed.grad,
    }


def _message_without_pairs(rank: int) -> str:
    try:
        PhysicalDistanceLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.arange(2) + 2 * rank)
    except ValueError as error:
        return str(error)
    return ""


def work(rank: int, folder: str) -> None:
    """Run every case in process `rank` and save what came out as `folder/RANK.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(folder, "init").as_uri(), rank=rank, world_size=len(SHARES))
    results: dict[str, object] = {}
    for name, case in CASES.items():
        results[name] = gradients(DistributedDataParallel(network()), case, SHARES[rank])
    results["collectives"] = _collectives(rank)
    results["no pairs"] = _message_without_pairs(rank)
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.barrier()  # no process leaves while the other still reads from it
    dist.destroy_process_group()
