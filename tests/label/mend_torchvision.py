"""Let a torchvision built for CUDA be imported beside a PyTorch built for the CPU.

A package index may offer PyTorch as a CPU build and torchvision as a CUDA build. torchvision then has no compiled
operators, looks for that everywhere but where it describes `torchvision::nms` and its like, and cannot be imported.
MONAI Label draws pictures with it and needs no operator. Where torchvision is whole this changes nothing.

    python tests/label/mend_torchvision.py        # in the environment to mend
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

DESCRIPTION = re.compile(r'^@torch\.library\.register_fake\("torchvision::\w+"\)\n', re.MULTILINE)
MISSING = re.compile(r"operator torchvision::\w+ does not exist")


def mend() -> None:
    """Take out the lines that describe operators which are not there.

    Raises:
        RuntimeError: if torchvision cannot be imported for another reason, or not even so.
    """
    if not MISSING.search(import_error()):
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("torchvision is not installed: pip install torchvision")
    path = Path(spec.submodule_search_locations[0]) / "_meta_registrations.py"
    path.write_text(DESCRIPTION.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"torchvision's compiled operators do not suit this PyTorch: took their descriptions out of {path}")
    error = import_error()
    if error:
        raise RuntimeError(f"torchvision cannot be imported: {error}")


def import_error() -> str:
    """What importing torchvision says in a process of its own; empty if it can be imported."""
    result = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return result.stderr if result.returncode else ""


if __name__ == "__main__":
    mend()
