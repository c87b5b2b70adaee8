"""How much memory a process has taken at most, and how the C library hands it out."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
# glibc's own settings, once a program has freed a block of 32 MB, up to which it adapts: how many blocks are mapped,
# from how many bytes on, and how many free bytes stay at the end of the heap
_DEFAULTS = ((-4, 65536), (-3, 32 << 20), (-1, 64 << 20))


def most_resident() -> float:
    """Bytes that this process has had in memory at most, files that it maps included."""
    if STATUS.exists():  # getrusage counts the parent's as well, as Linux hands it on
        return _status("VmHWM")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(used) if sys.platform == "darwin" else 1024.0 * used


def own() -> float:
    """Bytes that this process has for itself now; files that it maps belong to all processes and can be dropped."""
    return _status("RssAnon") if STATUS.exists() else most_resident()


def _status(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024.0 * int(line.split()[1])


def free_memory_by_default() -> None:
    """Have memory handed out as a program finds it that sets nothing and has run for a while."""
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt"):
        for option, value in _DEFAULTS:
            ctypes.CDLL(None).mallopt(option, value)
