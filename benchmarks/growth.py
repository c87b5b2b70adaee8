"""How the ISImed feed grows: with crops of a volume, with volumes, with loader processes; and memory.

Memory is what a process of its own holds for itself at most while it draws crops of every volume twice; files that it
maps are not counted, since processes share them and the system drops them where it needs the room:

    python -m benchmarks.growth store FOLDER 16
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, list_data_collate
from monai.transforms import Compose

from .bundles import recipe
from .feeds import CROP, crop_feed
from .files import MR, write_scan
from .memory import own
from .plain_feeds import foreground_crops
from .timing import Row, Settings, Spent, alternate, threads

TINY = (64, 64, 56)  # instead of MR
CROPS = 16


def run(settings: Settings) -> list[Row]:
    """Rows of all growths."""
    folder = settings.folder / "growth"
    folder.mkdir()
    shape = TINY if settings.size == "tiny" else MR
    numbers = settings.pick((4, 16, 64), (4, 16), (2, 4))
    first = Path(write_scan(folder / "scan_000.nii.gz", shape, "mr")["image"])
    for number in range(1, max(numbers)):
        (folder / f"scan_{number:03d}.nii.gz").hardlink_to(first)
    with threads(1):
        rows = [*by_crops(settings, folder), *by_volumes(settings, folder, numbers)]
        rows += by_processes(settings, folder, numbers[-1])
    for number in numbers:
        ours = peak_megabytes("store", folder, number)
        plain = [peak_megabytes("cache", folder, number)] if number <= 16 else []
        rows.append(Row(f"memory of a feed from {number} volumes, plain with CacheDataset", [ours], plain, unit="MB"))
    return rows


def items_in(folder: Path, number: int) -> list[dict[str, Any]]:
    """Of a datalist."""
    paths = sorted(folder.glob("scan_*.nii.gz"))[:number]
    return [{"image": str(path), "subject": path.name.split(".")[0]} for path in paths]


def our_feed(folder: Path, number: int, crops: int = CROPS) -> Any:
    """The recipe's config on so many volumes."""
    options: dict[str, Any] = {"crop_store": str(folder / "store"), "crops_per_volume": crops, "volumes_per_batch": 1}
    return recipe("isimed", folder, items_in(folder, number), **options)


def by_crops(settings: Settings, folder: Path) -> list[Row]:
    """A volume's crops, more and more of them."""
    counts = settings.pick((1, 4, 16, 64, 256, 512), (1, 16, 256), (1, 4))
    spent = alternate({str(n): crop_feed(our_feed(folder, 1, n)) for n in counts}, settings.repeats)
    return [_row(f"feed of {n} crops of one volume", spent[str(n)]) for n in counts]


def by_volumes(settings: Settings, folder: Path, numbers: Sequence[int]) -> list[Row]:
    """One volume's crops, from data sets of more and more volumes."""
    ways = {str(n): _in_turn(our_feed(folder, n), n) for n in numbers}
    spent = alternate(ways, settings.repeats)
    return [_row(f"feed of {CROPS} crops of a volume, of {n}", spent[str(n)]) for n in numbers]


def _in_turn(parser: Any, number: int) -> Callable[[], Any]:
    dataset = parser.get_parsed_content("train#dataset")
    collate = parser.get_parsed_content("train#dataloader").collate_fn
    count = itertools.count()

    def feed() -> Any:
        epoch, index = divmod(next(count), number)
        return collate([dataset[epoch, index]])

    return feed


def by_processes(settings: Settings, folder: Path, number: int) -> list[Row]:
    """One volume's crops by the recipe's loader, with more and more processes; whole epochs, once they have started."""
    times: dict[int, list[float]] = {n: [] for n in settings.pick((0, 1, 2), (0, 2), (0, 1))}
    loaders = {}
    for processes in times:
        parser = our_feed(folder, number)
        parser["num_workers"], parser["repeats"] = processes, settings.pick(4, 4, 1)
        loaders[processes] = parser.get_parsed_content("train#dataloader")
    for repeat in range(settings.repeats + 1):
        for processes, loader in loaders.items():
            begun = time.perf_counter()
            batches = sum(1 for _ in loader)
            if repeat:  # the first starts the processes
                times[processes].append((time.perf_counter() - begun) / batches)
    for loader in loaders.values():
        if loader.num_workers:
            loader._iterator._shutdown_workers()
    return [Row(f"feed of {CROPS} crops by {n} loader processes", found) for n, found in times.items()]


def _row(what: str, spent: Spent) -> Row:
    return Row(what, spent.wall, cpu={"ours": spent.cpu})


def peak_megabytes(way: str, folder: Path, number: int) -> float:
    """Of a process that draws crops of every volume twice, beyond what it holds when it has drawn from one."""
    words = [sys.executable, "-m", "benchmarks.growth", way, str(folder), str(number)]
    found = subprocess.run(words, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    return float(found.stdout.split()[-1])


def main(way: str, folder: str, number: str) -> None:
    """Measure in this process and print."""
    torch.set_num_threads(1)
    make = {"store": lambda n: _in_turn(our_feed(Path(folder), n), n), "cache": lambda n: _cached(Path(folder), n)}[way]
    make(1)()
    before = own()
    feed, held = make(int(number)), []
    for _ in range(2 * int(number)):
        feed()
        held.append(own())
    print(max(0.0, max(held) - before) / 1e6)


def _cached(folder: Path, number: int) -> Callable[[], Any]:
    """The plain pipeline's crops of one volume after the other."""
    steps, count = Compose(foreground_crops(CROP, CROPS)), itertools.count()
    dataset = CacheDataset(items_in(folder, number), steps, progress=False)
    return lambda: list_data_collate([dataset[next(count) % number]])


if __name__ == "__main__":
    main(*sys.argv[1:])
