"""Memory of large tensors is reused."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from anatomy_ssl.engines import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = 0
for turn in range(12):
    torch.ones(16_000_000)
    if turn == 7:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_are_not_asked_for_again() -> None:
    """Four tensors of 64 MB after the first eight: each takes thousands of new pages, or none."""
    faults = {}
    for mode in ("keep", "leave"):
        command = [sys.executable, "-c", PROGRAM, mode]
        faults[mode] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    assert faults["keep"] < 100 and faults["leave"] > 10 * faults["keep"] + 100, faults
