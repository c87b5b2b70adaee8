"""Trainers that take milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import nn

from anatomy_ssl.losses.weighted_sum import WeightedSumLoss


class Net(nn.Module):
    """Linear, with its output under a name."""

    def __init__(self, features: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, features)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(N, 4)` -> embedding `(N, features)`."""
        return {"embedding": self.linear(x)}


class Spoilt(nn.Module):
    """Mean squared error, NaN (or another value) from one call on."""

    def __init__(self, call: int, value: float = float("nan")) -> None:
        super().__init__()
        self.call, self.value, self.calls = call, value, 0

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Scalar."""
        self.calls += 1
        loss = (a - b).square().mean()
        return loss * self.value if self.calls >= self.call else loss


def two_terms(first: nn.Module | None = None) -> WeightedSumLoss:
    """A loss with terms `near` and `far`."""
    terms = {"near": first or nn.MSELoss(), "far": nn.L1Loss()}
    return WeightedSumLoss(terms, {name: ["embedding", "goal"] for name in terms}, {"far": 0.5})


def batches(count: int = 3, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Batches of an epoch."""
    rng = torch.Generator().manual_seed(seed)
    return [{"image": torch.randn(5, 4, generator=rng), "goal": torch.randn(5, 3, generator=rng)} for _ in range(count)]


def trainer(
    handlers: Sequence[Any],
    network: nn.Module | None = None,
    loss: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    epochs: int = 2,
    data: Any = None,
) -> SupervisedTrainer:
    """MONAI's trainer over three batches an epoch."""
    network = network or Net()
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=batches() if data is None else data,
        network=network,
        optimizer=optimizer or torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        loss_function=loss or two_terms(),
        prepare_batch=lambda batch, *_, **__: (batch["image"], {"goal": batch["goal"]}),
        train_handlers=list(handlers),
        decollate=False,
    )
