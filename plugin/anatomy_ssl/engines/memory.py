"""How the C library's allocator treats the memory of large tensors on the CPU."""

from __future__ import annotations

import ctypes
import logging
import sys

__all__ = ["keep_freed_memory"]

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, glibc's malloc.h
_MOST = 2**31 - 1  # bytes of free memory at the end of the heap that are kept


def keep_freed_memory() -> bool:
    """Let large tensors on the CPU reuse memory that was freed, for this process and those that it forks.

    glibc maps a large tensor anew each time it is made, and the system clears every page of it, which may take half of
    the time of a step on a CPU (docs/pretrain.md). This is what the environment
    variables `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647` do. The process then stays as large as it was at
    its largest. CUDA tensors have an allocator of their own.

    Returns:
        whether it could be set: only glibc (Linux) has it.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    done = set_option is not None and bool(set_option(_MMAP_MAX, 0) and set_option(_TRIM_THRESHOLD, _MOST))
    logger.debug("large tensors %s memory that was freed", "reuse" if done else "cannot be made to reuse")
    return done
