"""Two ways or more of the same work, timed in turn, so that both meet the same load of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anatomy_ssl.engines import keep_freed_memory

from .memory import free_memory_by_default

SHORTEST = 0.05  # seconds; what is done sooner is done several times and divided
MOST_CALLS = 200


@dataclass(frozen=True)
class Settings:
    """What all benchmarks share.

    Attributes:
        size: "full"; "quick", minutes; "tiny", which tells nothing and is for tests.
        device: where losses, averages and steps are computed.
        folder: for files that are written on the way.
        memory: bytes that a benchmark may ask for.
    """

    size: str
    device: torch.device
    folder: Path
    memory: float

    @property
    def repeats(self) -> int:
        """Of each way, after one that warms up."""
        return {"full": 7, "quick": 3, "tiny": 1}[self.size]

    def pick(self, full: Any, quick: Any, tiny: Any) -> Any:
        """The one of the size."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.size]


@dataclass
class Spent:
    """Seconds of one way, repeat by repeat: on the wall, and of the processor (all threads of this process)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass
class Row:
    """A line of the table.

    Attributes:
        what: is done.
        ours: measured repeats of this package's way.
        plain: likewise of the plain way, repeat i just before repeat i of ours; empty where there is none.
        unit: "s", "MB" or "%".
        at_least: times that ours is asked to be better than the plain way.
        at_most: what ours is asked to stay under, in `unit`.
        note: what one has to know to read it.
        cpu: processor seconds of both ways, where `unit` is "s".
    """

    what: str
    ours: list[float]
    plain: list[float] = field(default_factory=list)
    unit: str = "s"
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""
    cpu: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Plain by ours, pair by pair."""
        return [plain / max(ours, 1e-12) for plain, ours in zip(self.plain, self.ours)]

    @property
    def met(self) -> bool | None:
        """Whether it is as asked; None where nothing is asked, or the plain way was not measured."""
        if self.at_most is not None:
            return statistics.median(self.ours) <= self.at_most
        if self.at_least is None or not self.plain:
            return None
        return statistics.median(self.ratios) >= self.at_least


def compare(what: str, plain: Spent, ours: Spent, at_least: float | None = None, note: str = "") -> Row:
    """A row of two ways' times."""
    cpu = {"plain": plain.cpu, "ours": ours.cpu}
    return Row(what, ours.wall, plain.wall, at_least=at_least, note=note, cpu=cpu)


def alternate(
    ways: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device | None = None
) -> dict[str, Spent]:
    """Time every way `repeats` times, A B A B ..., after one turn that warms up and is not counted.

    The one called "ours" finds memory as the bundles' trainings have it (`keep_freed_memory`), others as by default,
    and each as it left it itself, by a call before that is not counted.

    Args:
        ways: by name.
        repeats: of each.
        device: is waited for, where it works by itself.
    """
    calls = {}
    for name, way in ways.items():
        _set_memory(name)
        calls[name] = _calls(_clock(way, 1, device)[0], way, device)
    spent = {name: Spent() for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            _set_memory(name)
            way()
            wall, cpu = _clock(way, calls[name], device)
            spent[name].wall.append(wall)
            spent[name].cpu.append(cpu)
    return spent


def _set_memory(name: str) -> None:
    if name == "ours" or name.isdigit():  # a size of ours, beside others
        keep_freed_memory()
    else:
        free_memory_by_default()


def _calls(first: float, way: Callable[[], Any], device: torch.device | None) -> int:
    """How often a way is called for one measurement; the first call may have been much slower than others."""
    second = _clock(way, 1, device)[0] if first < 20 * SHORTEST else first
    return min(MOST_CALLS, max(1, round(SHORTEST / max(second, 1e-9))))


def _clock(way: Callable[[], Any], calls: int, device: torch.device | None) -> tuple[float, float]:
    """Seconds of one call: wall and processor."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        way()
    synchronise(device)
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def synchronise(device: torch.device | None) -> None:
    """Wait for what the device still does."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads for torch: one, as a loader's process has."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def median(values: Sequence[float]) -> float:
    """Of at least one value."""
    return statistics.median(values)
