"""Memory of a feed from more than fits into it: CTs of 512x512x300 from a crop store, two loader processes.

    python -m benchmarks.large [--volumes 200] [--folder DIR]

The volumes are noise, made as they are prepared (their files hold a seed), 140 MB each in the store: 200 take 28 GB of
disk. Printed are the largest sums over all processes of what they hold, pages that they share counted once (Pss) and
in each of them (Rss), while three epochs of 16 crops of 32^3 a volume are fed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Transform

from anatomy_ssl.data import EpochSampler, ScanDataset
from anatomy_ssl.transforms import ForegroundPointsd, IntensityLookupd, RandPhysicalCropsd, ScaleRangePercentilesd

SHAPE = (512, 512, 300)


class Noised(Transform):
    """Turn a file with a seed into a volume of noise, with air on one side."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Add the volume."""
        random = np.random.default_rng(int(Path(data["image"]).read_text()))
        block = random.integers(-1000, 1500, (64, 64, SHAPE[2]), dtype=np.int16)
        values = np.tile(block, (SHAPE[0] // 64, SHAPE[1] // 64, 1))
        values[:60] = -1000
        affine = torch.diag(torch.tensor([0.8, 0.8, 1.0, 1.0], dtype=torch.float64))
        volume = MetaTensor(torch.from_numpy(values)[None], affine=affine, meta={"filename_or_obj": data["image"]})
        return {**data, "source": data["image"], "image": volume}


def megabytes() -> np.ndarray:
    """Of this process and its children: Pss, Rss."""
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    return np.array([sum(getattr(p.memory_full_info(), kind) for p in processes) / 1e6 for kind in ("pss", "rss")])


def main() -> None:
    """Build, feed, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--volumes", type=int, default=200)
    options.add_argument("--folder", type=Path, help="with room for the store; by default the system's for such files")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        items = []
        for seed in range(chosen.volumes):
            (Path(name) / f"ct{seed}.txt").write_text(str(seed))
            items.append({"image": str(Path(name) / f"ct{seed}.txt"), "subject": f"ct{seed}"})
        intensity = IntensityLookupd("image", ScaleRangePercentilesd("image", 5, 95, -1, 1))
        crops = RandPhysicalCropsd("image", (32, 32, 32), 16, candidates="foreground")
        chain = [Noised(), ForegroundPointsd("image", threshold=-500.0), intensity, crops]
        begun = time.perf_counter()
        dataset = ScanDataset(items, chain, store=Path(name) / "store", num_workers=2)
        built = time.perf_counter() - begun
        sampler = EpochSampler(dataset)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=2, persistent_workers=True)
        found = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found += [megabytes() for number, _ in enumerate(loader) if number % 10 == 0]
        size = sum(file.stat().st_size for file in Path(name).rglob("*.safetensors")) / 1e9
    pss, rss = np.max(found, axis=0)
    print(f"{chosen.volumes} volumes, {size:.1f} GB in the store, built in {built:.0f} s")
    print(f"at most {pss:.0f} MB (Pss), {rss:.0f} MB (Rss), in {len(found)} looks; {found[0][0]:.0f} MB (Pss) at first")


if __name__ == "__main__":
    main()
