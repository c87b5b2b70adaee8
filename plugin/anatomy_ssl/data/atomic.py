"""Files that are whole or absent: a process that dies while it writes leaves the file that was there before."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

__all__ = ["atomic_save", "atomic_write"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` only when the block ends without an exception.

    The bytes go to a hidden file in the same folder (a rename is atomic only within one file system), which is flushed
    to disk and then renamed. If the block raises, that file is removed; if the process is killed, it stays behind and
    `path` is as it was.

    Args:
        path: the file to write; missing folders are made. Its permissions follow the umask, like those of any new file.

    Yields:
        A file open for binary reading and writing, good for `torch.save`, `numpy.savez` and `json` text after
        `encode()`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_save(obj: Any, path: str | os.PathLike[str]) -> None:
    """`torch.save` that never leaves half a file; see `atomic_write`.

    Args:
        obj: what to save.
        path: the file to write.
    """
    with atomic_write(path) as file:
        torch.save(obj, file)
