"""FreezeUntil and SaveNetwork in MONAI's engines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

from anatomy_ssl.handlers.finetuning import FreezeUntil, SaveNetwork


class Net(nn.Module):
    """A part with batch statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.head = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, 4)` -> `(N, 1)`."""
        return self.head(self.encoder(x))


def batches() -> list[dict[str, torch.Tensor]]:
    """Two batches."""
    rng = torch.Generator().manual_seed(1)
    return [{"image": torch.randn(6, 4, generator=rng), "label": torch.randn(6, 1, generator=rng)} for _ in range(2)]


def train(network: nn.Module, handlers: list[Any], epochs: int, seen: Callable[[Engine], None]) -> None:
    """Adam with momentum and weight decay, which move weights even where gradients are zero."""
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=batches(),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5),
        loss_function=nn.MSELoss(),
        train_handlers=handlers,
        decollate=False,
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, seen)
    trainer.run()


def test_frozen_part_stays_bit_equal_and_then_trains() -> None:
    network = Net()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    moved: dict[int, set[str]] = {}

    def record(engine: Engine) -> None:
        state = network.state_dict()
        moved[engine.state.epoch] = {name for name in state if not torch.equal(state[name], start[name])}

    train(network, [FreezeUntil(network.encoder, 2)], 3, record)
    assert moved[1] == moved[2] == {"head.weight", "head.bias"}
    assert moved[3] == set(start)
    assert all(p.requires_grad for p in network.parameters())


def test_zero_epochs_freeze_nothing() -> None:
    plain, handled = Net(), Net()
    for network, handlers in ((plain, []), (handled, [FreezeUntil(handled.encoder, 0)])):
        torch.manual_seed(3)
        train(network, handlers, 1, lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), handled.state_dict().values()))


class Scripted(Metric):
    """A metric whose values are written down beforehand."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)
        super().__init__(output_transform=lambda output: (output["pred"], output["label"]))

    def reset(self) -> None:
        """Nothing to forget."""

    def update(self, output: Any) -> None:
        """Nothing to add."""

    def compute(self) -> float:
        """The next value."""
        return next(self.values)


def evaluator(network: nn.Module, values: list[float], saver: SaveNetwork) -> SupervisedEvaluator:
    """MONAI's evaluator with the scripted key metric."""
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches(),
        network=network,
        key_val_metric={"score": Scripted(values)},
        val_handlers=[saver],
        decollate=False,
    )


def validations(path: Path, values: list[float], saver: SaveNetwork | None = None) -> list[float]:
    """What the file holds after each validation; the network's weight counts them."""
    network = nn.Linear(4, 1)
    saver = saver or SaveNetwork(network, path)
    saver.network = network
    engine, found = evaluator(network, values, saver), []
    for epoch in range(1, len(values) + 1):
        network.weight.data.fill_(epoch)
        engine.run(epoch)
        found.append(float(torch.load(path, weights_only=True)["weight"][0, 0]))
    return found


def test_file_holds_the_best(tmp_path: Path) -> None:
    assert validations(tmp_path / "model.pt", [0.2, 0.5, 0.4, 0.5, 0.6]) == [1, 2, 2, 2, 5]
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_resumed_run_knows_the_best(tmp_path: Path) -> None:
    first = SaveNetwork(nn.Linear(1, 1), tmp_path / "model.pt")
    validations(tmp_path / "model.pt", [0.5], first)
    second = SaveNetwork(nn.Linear(1, 1), tmp_path / "model.pt")
    second.load_state_dict(first.state_dict())
    assert validations(tmp_path / "model.pt", [0.4, 0.6], second) == [1, 2]


def test_undefined_metrics_choose_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And never beat a number."""
    with caplog.at_level(logging.WARNING):
        assert validations(tmp_path / "model.pt", [float("nan"), float("nan"), 0.1, float("nan")]) == [1, 2, 3, 3]
    assert "score is not a number" in caplog.text


def test_end_of_training_is_written_only_where_nothing_was_validated(tmp_path: Path) -> None:
    path, network = tmp_path / "model.pt", Net()
    train(network, [SaveNetwork(network, path)], 1, lambda _: None)
    written = torch.load(path, weights_only=True)
    assert torch.equal(written["head.weight"], network.head.weight)
    saver = SaveNetwork(network, path)
    validations(path, [0.5], saver)
    saver.network = network
    train(network, [saver], 1, lambda _: None)
    assert list(torch.load(path, weights_only=True)) == ["weight", "bias"]


def test_keep_last_ignores_validations(tmp_path: Path) -> None:
    path, network = tmp_path / "model.pt", Net()
    saver = SaveNetwork(network, path, keep="last")
    evaluator(network, [0.9], saver).run()
    assert not path.exists()
    train(network, [saver], 1, lambda _: None)
    assert torch.equal(torch.load(path, weights_only=True)["head.weight"], network.head.weight)
    with pytest.raises(ValueError, match="best or last"):
        SaveNetwork(network, path, keep="first")
