"""How much memory a process has taken at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


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
