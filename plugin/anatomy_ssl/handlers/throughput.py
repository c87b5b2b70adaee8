"""How fast a training goes, and what it waits for."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from anatomy_ssl.handlers.training import process_rank

__all__ = ["ThroughputHandler"]

logger = logging.getLogger(__name__)


class ThroughputHandler:
    """Puts speed, waiting, memory and the time left into the metrics once an epoch, and one line into the log.

    - `samples_per_second`: of all processes, while training (validation and pictures do not count);
    - `data_wait`: share of that time, 0 to 1, in which the process waited for the data loader; of several processes
      the one that waited longest. On CUDA, where the device may still compute meanwhile, an upper bound;
    - `memory_mb`: of a CUDA device, the peak of what torch allocated; else what this process and its data loader's
      workers hold, pages that they share counted once. Of several processes the largest;
    - `seconds_left`: until the end of the run, by the last epochs as a whole, with validation.

    The first iteration after a start or a resume (workers start, memory is allocated, kernels are chosen) is left out,
    unless it is the epoch's only one. A device is waited for once an epoch. Put it behind the handlers that validate
    and draw, and ahead of those that write metrics.

    Args:
        batch_size: samples of one iteration in one process; None counts them: the length of the batch's first tensor.
        epochs: that `seconds_left` is estimated from, at most.
    """

    def __init__(self, batch_size: int | None = None, epochs: int = 5) -> None:
        self.batch_size = batch_size
        self.marks: deque[tuple[float, int]] = deque(maxlen=epochs)  # when an epoch started, and at which iteration
        self.totals = {"samples": 0.0, "seconds": 0.0, "waited": 0.0}
        self.cold = True
        self.asked = 0.0
        self._restart(0.0)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.receive)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)
        engine.add_event_handler(Events.COMPLETED, self.summarise)

    def start(self, engine: Engine) -> None:
        """Forget an earlier run."""
        self.marks.clear()
        self.totals = dict.fromkeys(self.totals, 0.0)
        self.cold = True

    def start_epoch(self, engine: Engine) -> None:
        """Count from here."""
        now = time.perf_counter()
        self.marks.append((now, engine.state.iteration))
        self._restart(now)

    def ask(self, engine: Engine) -> None:
        """The next batch is asked for. Once, also where the loader starts over in between."""
        self.asked = time.perf_counter()

    def receive(self, engine: Engine) -> None:
        """The batch is there."""
        self.waited += time.perf_counter() - self.asked
        self.samples += self.batch_size or count_samples(engine.state.batch)

    def end_iteration(self, engine: Any) -> None:
        """Leave the run's first iteration out; stop the clock at the epoch's last."""
        last = engine.state.iteration % (engine.state.epoch_length or sys.maxsize) == 0
        if self.cold and not last:
            self._restart(_when_done(engine.state.device))
        elif last:
            self.stopped = _when_done(engine.state.device)
        self.cold = False

    def report(self, engine: Engine) -> None:
        """Write the metrics of the epoch."""
        now = time.perf_counter()
        seconds = (self.stopped or now) - self.started
        samples, seconds, waited, memory = self._of_all_processes(engine, seconds)
        for name, value in (("samples", samples), ("seconds", seconds), ("waited", waited)):
            self.totals[name] += value
        since, iteration = self.marks[0]
        left = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0) - engine.state.iteration
        metrics = {
            "samples_per_second": samples / max(seconds, 1e-9),
            "data_wait": waited / max(seconds, 1e-9),
            "memory_mb": memory,
            "seconds_left": left * (now - since) / max(1, engine.state.iteration - iteration),
        }
        engine.state.metrics.update(metrics)
        if process_rank() == 0:
            logger.info(
                "epoch %d: %.4g samples/s, %.1f %% of the time waiting for data, %.0f MB, %s left",
                engine.state.epoch,
                metrics["samples_per_second"],
                100 * metrics["data_wait"],
                metrics["memory_mb"],
                timedelta(seconds=round(metrics["seconds_left"])),
            )

    def summarise(self, engine: Engine) -> None:
        """One line on the whole run, since its start or resume."""
        samples, seconds, waited = (self.totals[name] for name in ("samples", "seconds", "waited"))
        if process_rank() == 0 and seconds:
            rate, share = samples / seconds, 100 * waited / seconds
            logger.info("%.0f samples at %.4g samples/s, %.1f %% of the time waiting for data", samples, rate, share)

    def _restart(self, now: float) -> None:
        self.started, self.stopped, self.waited, self.samples = now, 0.0, 0.0, 0

    def _of_all_processes(self, engine: Any, seconds: float) -> tuple[float, float, float, float]:
        """Samples of all of them; the largest of time, waiting and memory."""
        largest = torch.tensor([seconds, self.waited, memory_mb(engine.state.device)])
        samples = torch.tensor([float(self.samples)])
        if dist.is_available() and dist.is_initialized():
            largest, samples = largest.to(engine.state.device), samples.to(engine.state.device)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            dist.all_reduce(samples)
        return float(samples), *(float(value) for value in largest)  # type: ignore[return-value]


def count_samples(batch: Any) -> int:
    """Length of the first tensor in dictionaries, lists and tuples; of a list without any, its own; 0 of others."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 1
    values = list(batch.values()) if isinstance(batch, Mapping) else batch
    if not isinstance(values, Sequence) or isinstance(values, str):
        return 0
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.ndim]
    if tensors:
        return len(tensors[0])
    return next((count for value in values if (count := count_samples(value))), len(values))


def memory_mb(device: torch.device | None = None) -> float:
    """Peak of what torch allocated on a CUDA device, else what this process and its children hold; MB of 2^20 bytes.

    Without Linux's /proc: the peak of this process alone, 0 where the system does not say (Windows).
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    if Path("/proc/self/smaps_rollup").exists():
        return sum(_proportional_kb(process) for process in processes if process is not None) / 2**10
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _proportional_kb(process: int) -> int:
    """Resident memory of a process, of pages that n processes share the n-th part; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _when_done(device: torch.device | None) -> float:
    """The time when all that was asked of the device is done."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
