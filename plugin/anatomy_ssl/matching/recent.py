"""What was lately computed of volumes, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from monai.utils import ensure_tuple

from anatomy_ssl.data.reading import BadImageError, first_path
from anatomy_ssl.weights.files import file_hash, fingerprint

__all__ = ["Recent", "content_hash", "item_key"]

T = TypeVar("T")


class Recent(Generic[T]):
    """The results that were asked for last.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result kept under a key, or else computed and kept."""
        if key not in self._kept:
            self._kept[key] = compute()
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def item_key(item: Mapping[str, Any]) -> tuple[tuple[str, int, int], ...]:
    """An item's files as they are now: path, size and time of the last change of each.

    Raises:
        BadImageError: a file is missing.
    """
    try:
        stats = [(str(path), path.stat()) for path in map(first_path, ensure_tuple(item["image"]))]
    except OSError as error:
        raise BadImageError(item["image"], "the file does not exist") from error
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)


_hashes: Recent[str] = Recent(4096)


def content_hash(item: Mapping[str, Any]) -> str:
    """SHA-256 of the bytes of an item's image, wherever it lies; of all files of a series, in their order."""

    def read() -> str:
        parts = map(first_path, ensure_tuple(item["image"]))
        files = [sorted(p for p in part.iterdir() if p.is_file()) if part.is_dir() else [part] for part in parts]
        return fingerprint([file_hash(file) for part in files for file in part])

    return _hashes.get(item_key(item), read)
