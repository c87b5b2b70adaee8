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

__all__ = ["atomic_path", "atomic_save", "atomic_write", "safe_load"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name for a writer that opens files by itself; see `atomic_write`.

    Args:
        path: the file to write; missing folders are made.

    Yields:
        the hidden file to write, which takes the place of `path` when the block ends without an exception.

    Raises:
        ValueError: if `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # by the umask, whatever the writer does
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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

    Raises:
        ValueError: if `path` is a folder.
    """
    with atomic_path(path) as temporary, open(temporary, "r+b") as file:
        yield file


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
        ValueError: the file is damaged, is none of `torch.save`, or holds pickled objects; or it is a folder or a URL.
    """
    _check_kind(path)
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


def _check_kind(path: str | os.PathLike[str]) -> None:
    """Refuse what is no file of `torch.save`, by what it is."""
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # two letters: C:/ is a disk
        raise ValueError(f"{path} is a URL: download it, and give the path of the file")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: give a file in it, such as checkpoint.pt or encoder.pt")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: check the path, or train or download them first")
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < Path(path).stat().st_size:  # length, then JSON
        raise ValueError(
            f"{path} is a safetensors file: re-save its tensors with torch.save(safetensors.torch.load_file(...), ...)"
        )
    if any(name.endswith("/constants.pkl") for name in _entries(path)):
        raise ValueError(
            f"{path} is a TorchScript program: where you trust it, save its weights alone with "
            "torch.save(torch.jit.load(...).state_dict(), ...)"
        )


def _entries(path: str | os.PathLike[str]) -> list[str]:
    """Names in a zip file; none where it is damaged or no zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _bad_sum(path: str | os.PathLike[str]) -> str | None:
    """Name the first entry of a zip file whose checksum is wrong: torch.load would return flipped bytes as weights."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()
