"""Prepared scans in memory, with random views that depend on nothing but seed, epoch and patient."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, Randomizable, Transform
from monai.transforms.traits import RandomizableTrait

from anatomy_ssl.data.reading import BadImageError, first_path

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
        num_workers: threads that prepare them.
        progress: whether to show a progress bar where there is a terminal.

    Raises:
        BadImageError: under "raise", at the first bad image.
        ValueError: when no image is left.
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
    ) -> None:
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f"on_bad_image must be 'raise' or 'skip', not {on_bad_image!r}")
        self.on_bad_image, self.seed = on_bad_image, seed
        self.skipped: list[BadImageError] = []
        steps = transform if callable(transform) else Compose(list(transform))
        # crops are copies already, so the cached volume needs none
        super().__init__(
            data,
            steps,
            cache_rate=cache_rate,
            num_workers=num_workers,
            progress=progress and sys.stderr.isatty(),
            copy_cache=False,
        )
        if on_bad_image == "skip":
            self._leave_out_bad_images()
        if len(self.data) == 0:
            raise ValueError(f"no image is left of {len(data)}: " + "; ".join(str(e) for e in self.skipped[:3]))

    def _load_cache_item(self, idx: int) -> Any:
        try:
            item = super()._load_cache_item(idx)
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
        start = self.transform.get_index_of_first(
            lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform)
        )
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
        return self._cache[index] if index < len(self._cache) else self._load_cache_item(index)

    def __getitem__(self, key: Any) -> Any:
        """Item `index` with the random views of `epoch`, for the key `(epoch, index)`."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not isinstance(index, int):
            return super().__getitem__(index)
        if isinstance(self.transform, Randomizable):
            # four words of fixed width: NumPy drops leading zeros of larger ones, and two items would draw alike
            sequence = np.random.SeedSequence([self.seed, epoch & 0xFFFFFFFF, epoch >> 32, index])
            self.transform.set_random_state(seed=int(sequence.generate_state(1)[0]))
        try:
            return super().__getitem__(index)
        except Exception as error:
            raise as_bad_image(error, self.data[index]) or error from error


def as_bad_image(error: BaseException, item: dict[str, Any]) -> BadImageError | None:
    """The bad image behind an error of MONAI's transform chain; None where the fault is not the image's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BadImageError):
            known = cause.path in ("image", "volume", "")
            return BadImageError(first_path(item["image"]), cause.cause) if known else cause
        cause = cause.__cause__ or cause.__context__
    return None


def subject_ids(names: Sequence[str]) -> torch.Tensor:
    """Names of patients `(N,)` as int64 that are the same in every process and run (first 8 bytes of a BLAKE2 hash)."""

    def number(name: str) -> int:
        return int.from_bytes(blake2b(str(name).encode(), digest_size=8).digest(), "big", signed=True)

    return torch.tensor([number(name) for name in names], dtype=torch.int64)
