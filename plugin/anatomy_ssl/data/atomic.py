"""Files that are whole or absent: a process that dies while it writes leaves the file that was there before."""

from __future__ import annotations

import os
import pickle
import re
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

__all__ = ["atomic_save", "atomic_write", "safe_load"]


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


def safe_load(path: str | os.PathLike[str]) -> Any:
    """`torch.load` to the CPU, of tensors and plain values only, with errors that say what is wrong with the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is none of `torch.save`, or holds pickled objects.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: check the path, or leave it empty to start from random weights")
    try:
        damaged = _bad_sum(path)
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:Unsupported global: |unsupported )GLOBAL (\S+)", str(error))
        if found:
            raise ValueError(
                f"{path} holds a pickled {found.group(1)}, which could run code: re-save its tensors alone with "
                "torch.save(model.state_dict(), ...)"
            ) from error
        damaged = type(error).__name__
    except Exception as error:  # RuntimeError, OSError, EOFError, KeyError and others, depending on where the bytes end
        damaged = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no content'}"
    if damaged:
        raise ValueError(f"{path} is damaged or not written by torch.save ({damaged}): copy or download it again")
    return content


def _bad_sum(path: str | os.PathLike[str]) -> str | None:
    """Name the first entry of a zip file whose checksum is wrong: torch.load would return flipped bytes as weights."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
