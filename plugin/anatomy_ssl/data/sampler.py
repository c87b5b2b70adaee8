"""The order of a training run, made so that a run can be stopped anywhere and goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch.distributed as dist
from torch.utils.data import DistributedSampler


class EpochSampler(DistributedSampler):
    """Yields `(epoch, index)`, so that a dataset can draw its random crops from seed, epoch and index alone.

    Random views then depend neither on the number of workers or of processes nor on what was drawn before, which makes
    a resumed run equal to an uninterrupted one. MONAI's trainers call `set_epoch` by themselves.

    Args:
        dataset: anything with a length.
        shuffle: whether each epoch has its own order.
        seed: of that order.
        even: whether every process gets the same number of items, by repeating some (for training); without it each
            item is seen exactly once, in order and with the same crops in every epoch (for evaluation).
        repeats: how often an epoch goes through the data set (small data sets waste time between epochs).

    Raises:
        ValueError: when the data set is empty, or without `even` smaller than the number of processes.
    """

    def __init__(
        self, dataset: Sized, shuffle: bool = True, seed: int = 0, even: bool = True, repeats: int = 1
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set is empty: no image was found, or every image was skipped")
        ready = dist.is_available() and dist.is_initialized()
        if ready and not even and len(dataset) < dist.get_world_size():
            # MONAI's engines skip an empty run, and the other processes would wait for this one's metrics for ever
            raise ValueError(
                f"{len(dataset)} validation images are too few for {dist.get_world_size()} processes, each needs one: "
                "hold more images out, or start fewer processes"
            )
        source: Any = dataset if repeats == 1 else range(len(dataset) * repeats)
        super().__init__(
            source,
            num_replicas=dist.get_world_size() if ready else 1,
            rank=dist.get_rank() if ready else 0,
            shuffle=shuffle,
            seed=seed,
        )
        self.items, self.even, self.skip = len(dataset), even, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The rest of this process's share of the epoch; `skip` items of it were seen before the run was stopped."""
        if not self.even:
            yield from ((0, index) for index in range(self.rank, self.items, self.num_replicas))
            return
        skip, self.skip = self.skip, 0
        for position, index in enumerate(super().__iter__()):
            if position >= skip:
                # repeats of one volume within an epoch need different crops, so each has an epoch of its own
                lap, item = divmod(index, self.items)
                yield self.epoch + (lap << 32), item

    def __len__(self) -> int:
        """Number of items of this process in a whole epoch."""
        if self.even:
            return self.num_samples
        return len(range(self.rank, self.items, self.num_replicas))
