"""What the numbers were measured on, and what that device reaches at its best."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import monai
import torch

from .timing import Row, Settings, alternate, median


def describe(device: torch.device) -> dict[str, Any]:
    """Names and versions."""
    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory() -> float:
    """Bytes of the machine."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def run(settings: Settings) -> list[Row]:
    """The device's best: a large matrix product in float32 and in bfloat16, and a large copy."""
    side = settings.pick(4096, 2048, 64) * (2 if settings.device.type == "cuda" else 1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(side, side, device=settings.device).to(dtype)
        spent = alternate({"ours": lambda m=matrix: m @ m}, settings.repeats, settings.device)["ours"]
        rate = 2 * side**3 / median(spent.wall) / 1e9
        what = f"product of matrices of {side}^2, {str(dtype).removeprefix('torch.')}"
        rows.append(Row(what, spent.wall, note=f"{rate:.0f} GFLOP/s"))
    source = torch.randn(4 * side * side, device=settings.device)
    target = torch.empty_like(source)
    spent = alternate({"ours": lambda: target.copy_(source)}, settings.repeats, settings.device)["ours"]
    rate = 2 * source.nbytes / median(spent.wall) / 1e9
    return [*rows, Row(f"copy of {source.nbytes / 1e6:.0f} MB", spent.wall, note=f"{rate:.0f} GB/s")]
