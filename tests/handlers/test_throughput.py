"""Speed, waiting, memory and the time left."""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.handlers import StatsHandler
from torch.utils.data import DataLoader, Dataset

from anatomy_ssl.handlers.checkpoint import TrainingCheckpoint
from anatomy_ssl.handlers.throughput import ThroughputHandler, count_samples, memory_mb
from tests.handlers.trainers import Net, batches, trainer

NAMES = {"samples_per_second", "data_wait", "memory_mb", "seconds_left"}


class SlowBatches:
    """Five samples a batch; some batches take their time.

    Args:
        count: of an epoch.
        wait: seconds before each batch.
        first: seconds before the very first.
    """

    def __init__(self, count: int = 4, wait: float = 0.0, first: float = 0.0) -> None:
        self.wait, self.first, self.data = wait, first, batches(count)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.data:
            time.sleep(self.wait + self.first)
            self.first = 0.0
            yield batch


class Sleep:
    """Sleeps at an event."""

    def __init__(self, event: Any, seconds: float) -> None:
        self.event, self.seconds = event, seconds

    def attach(self, engine: Engine) -> None:
        """Register."""
        engine.add_event_handler(self.event, lambda: time.sleep(self.seconds))


class Record:
    """Keeps the metrics of every epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        """Register."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: self.epochs.append(dict(e.state.metrics)))


def measured(data: Any, *others: Any, epochs: int = 2, **settings: Any) -> list[dict[str, float]]:
    """Metrics by epoch of a training on `data`, with other handlers before."""
    record = Record()
    trainer([*others, ThroughputHandler(**settings), record], epochs=epochs, data=data).run()
    return record.epochs


def test_waiting_and_speed_are_the_loaders() -> None:
    """Three of four parts of the time are the loader's: 0.03 s for each batch, beside 0.01 s of training."""
    for metrics in measured(SlowBatches(8, wait=0.03), Sleep(Events.ITERATION_STARTED, 0.01)):
        assert set(metrics) == NAMES
        assert 0.6 < metrics["data_wait"] < 0.85
        assert 30 < metrics["samples_per_second"] < 126


def test_an_epoch_without_waiting() -> None:
    for metrics in measured(SlowBatches(4), Sleep(Events.ITERATION_STARTED, 0.05)):
        assert metrics["data_wait"] < 0.3


def test_the_start_of_the_loader_is_left_out_of_the_first_epoch() -> None:
    """But of an epoch of one iteration there is nothing else to report."""
    first, _ = measured(SlowBatches(5, wait=0.001, first=0.5), Sleep(Events.ITERATION_STARTED, 0.02))
    assert first["data_wait"] < 0.5 and first["samples_per_second"] > 50
    only, _ = measured(SlowBatches(1, first=0.2))
    assert only["data_wait"] > 0.5 and 0 < only["samples_per_second"] < 25


def test_validation_is_no_training_time_but_counts_for_the_time_left() -> None:
    """0.4 s after each epoch."""
    validation = Sleep(Events.EPOCH_COMPLETED, 0.4)
    first, second, third = measured(SlowBatches(4, wait=0.01), validation, epochs=3)
    assert first["samples_per_second"] > 60  # with validation it would be under 50
    assert 0.8 < first["seconds_left"] < 3
    assert 0.4 < second["seconds_left"] < 1.5
    assert third["seconds_left"] == 0


def test_the_time_left_follows_the_last_epochs() -> None:
    """A slow first epoch is forgotten."""
    slow_start = Sleep(Events.EPOCH_COMPLETED(once=1), 1.0)
    record = Record()
    trainer([slow_start, ThroughputHandler(epochs=2), record], epochs=8, data=SlowBatches(2, wait=0.005)).run()
    assert record.epochs[0]["seconds_left"] > 6
    assert record.epochs[4]["seconds_left"] < 1


def test_a_resumed_run_reports_its_first_epoch(tmp_path: Any) -> None:
    """A part of an epoch, without the first iteration, and the time left of what is left."""

    def run(epochs: int, resume: bool, *more: Any) -> list[dict[str, float]]:
        network, record = Net(), Record()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        keep = TrainingCheckpoint(str(tmp_path), {"model": network, "optimizer": optimizer}, resume=resume)
        handlers = [*more, ThroughputHandler(), record, keep]
        trainer(handlers, network, optimizer=optimizer, epochs=epochs, data=SlowBatches(4, wait=0.02)).run()
        return record.epochs

    run(1, False)
    resumed = run(3, True)
    assert len(resumed) == 2 and set(resumed[0]) == NAMES
    assert resumed[0]["data_wait"] > 0.5
    assert 0.05 < resumed[0]["seconds_left"] < 1


@pytest.mark.parametrize(
    "batch, samples",
    [
        (torch.zeros(3, 2), 3),
        (torch.tensor(1.0), 1),
        ([torch.zeros(4, 2), torch.zeros(4)], 4),
        ((torch.zeros(2), "a"), 2),
        ({"subject": ["a", "b"], "image": torch.zeros(6, 1)}, 6),
        ({"views": [torch.zeros(7, 1), torch.zeros(7, 1)]}, 7),
        ([{"image": torch.zeros(1, 2)}, {"image": torch.zeros(1, 2)}], 1),
        ({"subject": ["a", "b"]}, 2),
        ("word", 0),
        (None, 0),
    ],
)
def test_samples_of_a_batch(batch: Any, samples: int) -> None:
    assert count_samples(batch) == samples


def test_a_given_batch_size_is_believed() -> None:
    """As where a sample is not a row of the batch."""
    counted, given = (measured(SlowBatches(6, wait=0.02), **k)[1] for k in ({}, {"batch_size": 50}))
    assert 5 < given["samples_per_second"] / counted["samples_per_second"] < 20


class Numbers(Dataset):
    """Samples, one at a time."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": torch.full((4,), float(index)), "goal": torch.zeros(3)}


def test_workers_start_over_each_epoch() -> None:
    """Of persistent workers, which ignite asks for the next epoch by an iteration that has none."""
    loader = DataLoader(Numbers(), batch_size=4, num_workers=1, persistent_workers=True)
    results = measured(loader, epochs=3)
    loader._iterator._shutdown_workers()
    assert all(0 <= metrics["data_wait"] <= 1 for metrics in results)
    assert all(metrics["samples_per_second"] > 0 for metrics in results)


def test_memory_is_what_the_process_holds() -> None:
    """Within the noise of what others free meanwhile."""
    before = memory_mb(torch.device("cpu"))
    assert before > 50
    held = mmap.mmap(-1, 100 * 2**20)  # of torch's allocator the process may have some left
    for _ in range(100):
        held.write(b"1" * 2**20)
    assert before + 50 < memory_mb() < before + 150 and len(held)


def test_lines_of_the_log_and_metrics_for_other_handlers(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """One for each epoch and one for the run; MONAI's handlers show the metrics."""
    caplog.set_level(logging.INFO)
    shown = StatsHandler(iteration_log=False, name="shown")
    trainer([ThroughputHandler(), shown], epochs=2, data=SlowBatches(3, wait=0.01)).run()
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("throughput")]
    assert [line.split(":")[0] for line in lines[:2]] == ["epoch 1", "epoch 2"] and len(lines) == 3
    assert "samples/s" in lines[0] and "waiting for data" in lines[0] and "0:00:00 left" in lines[1]
    assert lines[2].startswith("25 samples at ")  # ten of the first epoch, all 15 of the second
    assert "data_wait: 0." in capsys.readouterr().out


def test_nothing_is_changed_by_it() -> None:
    """The same weights, and the same random numbers after."""
    ends = []
    for handlers in ([], [ThroughputHandler()]):
        network = Net()
        torch.manual_seed(3)
        trainer(handlers, network).run()
        ends.append([*network.parameters(), torch.rand(2)])
    assert all(torch.equal(a, b) for a, b in zip(*ends))


def process(rank: int, port: int, results: Any) -> None:
    """One of two: the second one waits for its data."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    metrics = measured(SlowBatches(6, wait=0.05 * rank), Sleep(Events.ITERATION_STARTED, 0.05 * (1 - rank)))
    results.put((rank, metrics))
    dist.destroy_process_group()


def test_two_processes() -> None:
    """Samples of both, the wait of the one that waits longest, everywhere the same."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    both = [context.Process(target=process, args=(rank, port, results)) for rank in range(2)]
    for one in both:
        one.start()
    (first, second) = (metrics for _, metrics in sorted(results.get(timeout=120) for _ in both))
    for one in both:
        one.join(60)
    for mine, theirs in zip(first, second):
        assert {**mine, "seconds_left": 0} == {**theirs, "seconds_left": 0}
        assert mine["data_wait"] > 0.7
        assert 30 < mine["samples_per_second"] < 210
