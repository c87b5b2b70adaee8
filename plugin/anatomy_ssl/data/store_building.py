"""Filling a store of prepared scans, in several processes, and looking it through."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from anatomy_ssl.data.reading import BadImageError, as_bad_image
from anatomy_ssl.data.scan_store import ScanStore, damage, source_problem

__all__ = ["build_store", "check_store"]

logger = logging.getLogger(__name__)

_SAMPLE = 4  # scans from which the size of all is estimated
_ROUND = 64  # scans of a process between two meetings of all processes: who waits too long is thought dead
_ABANDONED = 3600  # seconds after which a temporary file belongs to no living process


class _Preparation(Dataset):
    """Writes an item to the store when it is asked for; gives what went wrong, or None."""

    def __init__(self, store: ScanStore, items: Sequence[Mapping[str, Any]]) -> None:
        self.store, self.items = store, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> BadImageError | OSError | None:
        item = self.items[index]
        try:
            self.store.put(item)
        except Exception as error:
            bad = as_bad_image(error, item)
            if bad is None and isinstance(error, (OSError, SafetensorError)):
                cause = " ".join(str(error).split())
                return OSError(f"{self.store.store} cannot be written to ({cause}): give the crop store another folder")
            if bad is None:
                raise
            return bad
        return None


def build_store(
    store: ScanStore,
    items: Sequence[Mapping[str, Any]],
    workers: int = 2,
    on_bad_image: str = "raise",
    progress: bool = True,
    verify: bool = False,
) -> dict[int, BadImageError]:
    """Prepare and write the items that a store does not hold, or holds in a damaged or older state.

    It may be stopped at any time and goes on where it was. Of several processes of one training each prepares a share.

    Args:
        store: the store.
        items: of a datalist.
        workers: processes that prepare scans; 0 prepares them in this one.
        on_bad_image: "raise" or "skip".
        progress: whether to show a progress bar where there is a terminal.
        verify: compare the checksums of what is there, which reads all of it.

    Returns:
        what is wrong with the items that cannot be used, by their index; the same in all processes.

    Raises:
        BadImageError: under "raise", at the first of them.
        OSError: the disk is too small.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    _remove_abandoned(store)
    bad: dict[int, BadImageError] = {}
    share = range(rank, len(items), size)
    absent = [i for i in share if _is_absent(store, items[i], bad, i, on_bad_image, verify)]
    rounds = [absent[start : start + _ROUND] for start in range(0, len(absent), _ROUND)] if size > 1 else [absent]
    bar = tqdm(total=len(absent), desc="crop store", disable=not (progress and rank == 0 and sys.stderr.isatty()))
    for number in range(_most(len(rounds), size)):
        chosen = rounds[number] if number < len(rounds) else []
        for i, problem in _prepared(store, items, chosen, workers, len(absent) * size if number == 0 else 0):
            bar.update()
            if isinstance(problem, OSError) or (problem is not None and on_bad_image == "raise"):
                raise problem
            if problem is not None:
                bad[i] = problem
        if size > 1:
            dist.barrier()
    bar.close()
    if absent:
        written = sum(i not in bad for i in absent)
        logger.info("%d scans were prepared and written to %s", written, store.folder)
    return _of_all(bad, size)


def _is_absent(
    store: ScanStore,
    item: Mapping[str, Any],
    bad: dict[int, BadImageError],
    index: int,
    on_bad_image: str,
    verify: bool,
) -> bool:
    """Whether an item is to be prepared; that its source is missing goes to `bad`."""
    try:
        problem = store.problem(item, verify)
    except BadImageError as error:
        if on_bad_image == "raise":
            raise
        bad[index] = error
        return False
    if problem is not None and store.path_of(item).exists():
        logger.warning("it is prepared anew: %s", problem)
    return problem is not None


def _prepared(
    store: ScanStore, items: Sequence[Mapping[str, Any]], indices: Sequence[int], workers: int, of: int
) -> Iterator[tuple[int, BadImageError | OSError | None]]:
    """Prepare items, after the first few of which the room for all `of` of them is compared with the disk's."""
    if not indices:
        return
    chosen = [items[i] for i in indices]
    problems: Any = _Preparation(store, chosen)
    own = torch.Generator()  # else the loader would draw from the generator of the training that waits for this
    number = min(workers, len(chosen))
    loader = DataLoader(problems, batch_size=None, num_workers=number, collate_fn=_same, generator=own)
    for count, (i, problem) in enumerate(zip(indices, loader), start=1):
        if count == min(_SAMPLE, len(indices)) and of:
            _check_room(store, chosen[:count], of - count)
        yield i, problem


def _same(problem: Any) -> Any:
    return problem


def _check_room(store: ScanStore, done: Sequence[Mapping[str, Any]], left: int) -> None:
    """Say what the scans will take, and stop if the disk has less."""
    sizes = [path.stat().st_size for path in map(store.path_of, done) if path.exists()]
    if not sizes:
        return
    needed, free = left * sum(sizes) / len(sizes), store.free_bytes()
    logger.info("crop store: about %s for %d more scans, %s free in %s", _size(needed), left, _size(free), store.store)
    if needed > free:
        raise OSError(
            f"{store.store} has {_size(free)} free, and {left} scans need about {_size(needed)} more: give the crop "
            "store another folder; what is written will be used"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _most(rounds: int, size: int) -> int:
    """The rounds of the process that has most."""
    if size == 1:
        return rounds
    found: list[Any] = [None] * size
    dist.all_gather_object(found, rounds)
    return max(found)


def _of_all(bad: dict[int, BadImageError], size: int) -> dict[int, BadImageError]:
    """Those of every process."""
    if size == 1:
        return bad
    found: list[Any] = [None] * size
    dist.all_gather_object(found, bad)
    return {index: error for part in found for index, error in part.items()}


def _remove_abandoned(store: ScanStore) -> None:
    for path in store.folder.glob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
        except FileNotFoundError:  # another process was quicker
            continue


def check_store(folder: str | Path, progress: bool = True) -> tuple[dict[str, int], list[str]]:
    """Look through all stored scans, whatever their preparation: checksums, and whether their sources have changed.

    Args:
        folder: of the store.
        progress: whether to show a progress bar where there is a terminal.

    Returns:
        how many scans each preparation has, by its subfolder, and one line for each scan that is not sound.

    Raises:
        FileNotFoundError: there is no store.
    """
    preparations = sorted(path for path in Path(folder).glob("scans-*") if path.is_dir())
    if not preparations:
        raise FileNotFoundError(f"{folder} holds no prepared scans: build it with python -m anatomy_ssl store build")
    files = {path.name: sorted(path.glob("*.safetensors")) for path in preparations}
    every = [file for found in files.values() for file in found]
    problems = []
    for file in tqdm(every, desc="check", disable=not (progress and sys.stderr.isatty())):
        problem = damage(file) or source_problem(file)
        problems += [problem] if problem else []
    return {name: len(found) for name, found in files.items()}, problems
