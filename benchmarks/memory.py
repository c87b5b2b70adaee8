"""How much memory a process has taken at most, and how the C library hands it out."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anatomy_ssl.engines import keep_freed_memory

STATUS = Path("/proc/self/status")
# glibc's own settings for mallopt, once a program has freed a block of 32 MB: it adapts up to that
_DEFAULTS = {"mmap_max": (-4, 65536), "mmap_threshold": (-3, 32 << 20), "trim_threshold": (-1, 64 << 20)}


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


def memory_kept(way: Callable[[], Any]) -> Callable[[], Any]:
    """A way that finds memory as the bundles' trainings have it."""

    def run() -> Any:
        keep_freed_memory()
        return way()

    return run


def by_default(way: Callable[[], Any]) -> Callable[[], Any]:
    """A way that finds memory as a program has it that sets nothing, and has run for a while."""

    def run() -> Any:
        if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt"):
            for option, value in _DEFAULTS.values():
                ctypes.CDLL(None).mallopt(option, value)
        return way()

    return run
