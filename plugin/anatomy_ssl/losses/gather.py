"""Collectives with gradients, so that a loss over several processes equals the loss of the whole batch in one.

The convention of every loss here: each process returns the same scalar, that of the whole batch, and
DistributedDataParallel averages the parameter gradients. The backward of a collective therefore sums the gradients of
all processes: the sum counts the loss once for each process, which the average undoes.

`torch.distributed.nn.functional` has the same gradients but is deprecated since torch 2.13, and its successor is a
private module that differs between the supported versions. `monai.utils.evenly_divisible_all_gather` has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def process_count(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of processes of `group` (default: all), 1 without an initialised process group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def process_index(group: dist.ProcessGroup | None = None) -> int:
    """Return this process's rank in `group` (default: all), 0 without an initialised process group."""
    return dist.get_rank(group) if process_count(group) > 1 else 0


def row_counts(count: int, device: torch.device | str, group: dist.ProcessGroup | None = None) -> list[int]:
    """Tell every process how many rows (or pairs) each of them holds. Collective: every process has to call it.

    Args:
        count: the number in this process.
        device: a device that the group's backend can send from.
        group: the process group; all processes by default.

    Returns:
        One number for each process, in the order of their ranks; `[count]` with a single process.
    """
    if process_count(group) == 1:
        return [count]
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(process_count(group))]
    dist.all_gather(counts, torch.tensor([count], dtype=torch.int64, device=device), group=group)
    return torch.cat(counts).tolist()


def all_gather_rows(x: Tensor, group: dist.ProcessGroup | None = None, counts: Sequence[int] | None = None) -> Tensor:
    """Concatenate the rows of every process, with gradients. Collective: every process has to call it.

    Args:
        x: `(N, ...)`, any dtype; N may differ between processes, the other sizes and the dtype may not.
        group: the process group; all processes by default.
        counts: N of every process as `row_counts` returns it, to save asking for it again.

    Returns:
        `(sum of N, ...)`, ordered by rank and the same on every process; `x` itself with a single process. Where every
        process computes the loss of the whole batch from it, gradients averaged by DistributedDataParallel equal those
        of one process with the whole batch.
    """
    if process_count(group) == 1:
        return x
    counts = row_counts(len(x), x.device, group) if counts is None else counts
    return _AllGatherRows.apply(x, counts, group)


def sum_over_processes(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum a tensor of one shape over the processes, with gradients. Collective: every process has to call it.

    Args:
        x: any shape and floating dtype, the same in every process.
        group: the process group; all processes by default.

    Returns:
        The sum, the same on every process; `x` itself with a single process. Gradients as in `all_gather_rows`.
    """
    return x if process_count(group) == 1 else _SumOverProcesses.apply(x, group)


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.counts, ctx.group = counts, group
        padded = x.new_zeros((max(counts), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.split(list(ctx.counts))[process_index(ctx.group)], None, None


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
