"""Prepared scans in memory, with random views that depend on nothing but seed, epoch and patient."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Randomizable, Transform
from monai.transforms.traits import RandomizableTrait
from monai.utils import MAX_SEED

from anatomy_ssl.data.reading import BadImageError, as_bad_image
from anatomy_ssl.data.scan_store import ScanStore
from anatomy_ssl.data.store_building import build_store

logger = logging.getLogger(__name__)


class ScanDataset(CacheDataset):
    """MONAI's `CacheDataset` for scans, of which some are bad, in runs that are stopped and resumed.

    Differs in two points. Items that cannot be used stop the run with one line that names file and cause, or are left
    out before training starts, each with one line, with a count and the list in `skipped`; each volume is cropped once
    for that, since it may be too small. And random transforms are seeded for each item by `(seed, epoch, index)`, with
    keys from `EpochSampler`; a plain integer key stands for epoch 0.

    Args:
        data: items, `{"image": path, "subject": name, ...}`.
        transform: deterministic transforms first, then random ones, as in MONAI.
        on_bad_image: "raise" or "skip". Skipping reads every image once before training, cached or not, so that the
            length of an epoch is known.
        seed: of the random transforms.
        cache_rate: share of the prepared volumes kept in memory.
        num_workers: threads that prepare them (with a store, processes).
        progress: whether to show a progress bar where there is a terminal.
        store: folder of a `ScanStore`, to which volumes are written that are not there yet, and from which they are
            mapped into memory when crops are cut: memory does not grow with the data set. None keeps them in memory.

    Raises:
        BadImageError: under "raise", at the first bad image.
        ValueError: when no image is left.
        OSError: the disk of the store is too small.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Sequence[Callable] | Callable,
        on_bad_image: str = "raise",
        seed: int = 0,
        cache_rate: float = 1.0,
        num_workers: int = 2,
        progress: bool = True,
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f"on_bad_image must be 'raise' or 'skip', not {on_bad_image!r}")
        self.on_bad_image, self.seed = on_bad_image, seed
        self.skipped: list[BadImageError] = []
        # a composition within one counts as random, and all of it would run anew for every crop
        steps = flat_chain(transform)
        self.store = None if store is None else ScanStore(store, steps.transforms[: first_random(steps)])
        self._bad: dict[int, BadImageError] = {}
        # crops are copies already, so the cached volume needs none
        super().__init__(
            data,
            steps,
            cache_rate=cache_rate if store is None else 0.0,
            num_workers=num_workers,
            progress=progress and sys.stderr.isatty(),
            copy_cache=False,
        )
        if self.store is not None:
            self._bad = self._build_store(num_workers, progress)
        if on_bad_image == "skip" or self.store is not None:
            self._leave_out_bad_images()
        if len(self.data) == 0:
            raise ValueError(f"no image is left of {len(data)}: " + "; ".join(str(e) for e in self.skipped[:3]))

    def _build_store(self, num_workers: int, progress: bool) -> dict[int, BadImageError]:
        assert self.store is not None
        try:
            return build_store(self.store, self.data, num_workers, self.on_bad_image, progress)
        except (BadImageError, OSError, TypeError) as error:
            logger.error("%s", error)  # MONAI's bundle wraps what happens at construction in messages of its own
            raise

    def _load_cache_item(self, idx: int) -> Any:
        if idx in self._bad:
            return self._bad[idx]
        try:
            item = super()._load_cache_item(idx) if self.store is None else self.store.get(self.data[idx])
            self._try_random_part(item)
            return item
        except Exception as error:
            bad = as_bad_image(error, self.data[idx])
            if bad is None:
                raise
            if self.on_bad_image == "raise":
                # MONAI's bundle wraps what happens at construction in messages of its own
                logger.error("%s", bad)
                raise bad from error
            logger.warning("skipped: %s", bad)
            return bad

    def _try_random_part(self, item: Any) -> None:
        """Draw once from a prepared item: a volume may be good and yet too small for the crop."""
        start = first_random(self.transform)
        if start is not None:
            self.transform(item, start=start, threading=True)

    def _leave_out_bad_images(self) -> None:
        prepared = dict(enumerate(self._cache))
        bad = {i: item for i, item in prepared.items() if isinstance(item, BadImageError)}
        for i in range(len(self._cache), len(self.data)):
            item = self._load_cache_item(i)
            if isinstance(item, BadImageError):
                bad[i] = item
        self.skipped = list(bad.values())
        self._bad = {}
        self.data = [item for i, item in enumerate(self.data) if i not in bad]
        self._cache = [item for i, item in prepared.items() if i not in bad]
        self.cache_num = len(self._cache)
        self.report_skipped()

    def report_skipped(self) -> None:
        """Log how many images were left out, and which."""
        if self.skipped:
            listing = "".join(f"\n  {error}" for error in self.skipped)
            total = len(self.data) + len(self.skipped)
            logger.warning("%d of %d images were skipped:%s", len(self.skipped), total, listing)

    def prepared(self, index: int) -> dict[str, Any]:
        """Item `index` after the deterministic transforms, from memory where it is there; not to be changed."""
        if self.store is not None:
            return self.store.get(self.data[index])
        return self._cache[index] if index < len(self._cache) else self._load_cache_item(index)

    def _transform(self, index: int) -> Any:
        if self.store is None:
            return super()._transform(index)
        start = first_random(self.transform)
        item = self.prepared(index)
        return item if start is None else self.transform(item, start=start)

    def __getitem__(self, key: Any) -> Any:
        """Item `index` with the random views of `epoch`, for the key `(epoch, index)`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not isinstance(index, (int, np.integer)):
            return super().__getitem__(index)
        index = int(index) + (len(self.data) if index < 0 else 0)
        if isinstance(self.transform, Randomizable):
            # four words of fixed width: NumPy drops leading zeros of larger ones, and two items would draw alike
            sequence = np.random.SeedSequence([self.seed, epoch & 0xFFFFFFFF, epoch >> 32, index])
            reseed(self.transform, int(sequence.generate_state(1)[0]))
        try:
            return super().__getitem__(index)
        except Exception as error:
            raise as_bad_image(error, self.data[index]) or error from error


def subject_ids(names: Sequence[str]) -> torch.Tensor:
    """Names of patients `(N,)` as int64 that are the same in every process and run (first 8 bytes of a BLAKE2 hash)."""

    def number(name: str) -> int:
        return int.from_bytes(blake2b(str(name).encode(), digest_size=8).digest(), "big", signed=True)

    return torch.tensor([number(name) for name in names], dtype=torch.int64)


def flat_chain(transform: Sequence[Callable] | Callable) -> Compose:
    """Transforms as one composition without others in it: MONAI takes a composition for random, whatever it holds."""
    chain = transform if callable(transform) else Compose(list(transform))
    if type(chain) is not Compose:
        return Compose([chain])
    return chain.flatten() if any(type(step) is Compose for step in chain.transforms) else chain


def first_random(chain: Compose) -> int | None:
    """Where the random part of a composition begins, as MONAI's `CacheDataset` finds it; None where there is none."""
    return chain.get_index_of_first(lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform))


def reseed(chain: Compose, seed: int) -> None:
    """As `chain.set_random_state(seed)`, with the generators that are there: to make them takes longer than a crop."""
    _seed_one(chain, seed)
    for transform in chain.transforms:
        if isinstance(transform, Randomizable):
            value = int(chain.R.randint(MAX_SEED, dtype="uint32"))
            if type(transform).set_random_state is Randomizable.set_random_state:
                _seed_one(transform, value)
            else:
                transform.set_random_state(seed=value)


def _seed_one(transform: Randomizable, seed: int) -> None:
    """Seed the generator of a transform alone; the class has one, too, for all transforms that were never seeded."""
    if "R" in vars(transform):
        transform.R.seed(seed % MAX_SEED)
    else:
        Randomizable.set_random_state(transform, seed=seed)
