"""Reading crops of a volume from files of several formats: what the crop store's was chosen by.

    pip install zarr blosc2
    python -m benchmarks.formats [--shape 400 400 326] [--crops 16]

A file is opened anew for each set of crops, from the page cache. Formats that are not installed are left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .files import write_scan

Open = Callable[[], Any]


def openers(folder: Path, volume: np.ndarray) -> dict[str, tuple[Open, Path]]:
    """Write the volume in every format; how each is opened, and where it lies."""
    np.save(folder / "v.npy", volume)
    save_file({"v": torch.from_numpy(volume)}, folder / "v.safetensors")

    def mapped() -> Any:
        with safe_open(folder / "v.safetensors", "pt") as file:
            return file.get_tensor("v").numpy()

    ways: dict[str, tuple[Open, Path]] = {
        "safetensors, mapped": (mapped, folder / "v.safetensors"),
        "NumPy's .npy, mapped": (lambda: np.load(folder / "v.npy", mmap_mode="r"), folder / "v.npy"),
    }
    for block in (16, 32) if find_spec("blosc2") else ():
        path = folder / f"v{block}.b2nd"
        ways[f"blosc2, LZ4, blocks of {block}^3"] = (_blosc2(path, volume, block), path)
    for chunk in (32, 64) if find_spec("zarr") else ():
        path = folder / f"v{chunk}.zarr"
        ways[f"zarr, chunks of {chunk}^3"] = (_zarr(path, volume, chunk), path)
    return ways


def _blosc2(path: Path, volume: np.ndarray, block: int) -> Open:
    import blosc2

    packing = {"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1, "filters": [blosc2.Filter.SHUFFLE]}
    blosc2.asarray(volume, chunks=(64,) * 3, blocks=(block,) * 3, urlpath=str(path), cparams=packing, mode="w")
    return lambda: blosc2.open(str(path), mmap_mode="r", dparams={"nthreads": 1})


def _zarr(path: Path, volume: np.ndarray, chunk: int) -> Open:
    import zarr

    zarr.create_array(str(path), shape=volume.shape, chunks=(chunk,) * 3, dtype=volume.dtype)[:] = volume
    return lambda: zarr.open_array(str(path), mode="r")


def milliseconds(opened: Open, shape: Sequence[int], side: int, crops: int, repeats: int = 15) -> float:
    """Of one crop, median over sets of crops at random places."""
    random, times = np.random.default_rng(0), []
    for _ in range(repeats + 1):
        starts = [[int(random.integers(n - side + 1)) for n in shape] for _ in range(crops)]
        out = np.empty((crops, side, side, side), np.int16)
        started = time.perf_counter()
        file = opened()
        for box, (i, j, k) in zip(out, starts):
            box[...] = file[i : i + side, j : j + side, k : k + side]
        times.append((time.perf_counter() - started) / crops * 1e3)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", type=int, nargs=3, default=[400, 400, 326], help="voxels")
    options.add_argument("--crops", type=int, default=16, help="of one opening")
    chosen = options.parse_args()
    sides = [side for side in (32, 64) if side <= min(chosen.shape)]
    with tempfile.TemporaryDirectory() as name:
        item = write_scan(Path(name) / "ct.nii.gz", chosen.shape, "ct")
        volume = np.ascontiguousarray(np.asanyarray(nib.load(item["image"]).dataobj))
        print("| format | " + " | ".join(f"{side}^3 (ms)" for side in sides) + " | size |")
        print("|---|" + "---:|" * (len(sides) + 1))
        for way, (opened, path) in openers(Path(name), volume).items():
            times = [milliseconds(opened, volume.shape, side, chosen.crops) for side in sides]
            size = sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file()) / volume.nbytes
            print(f"| {way} | " + " | ".join(f"{t:.2f}" for t in times) + f" | {size:.0%} |")


if __name__ == "__main__":
    main()
