"""Feeding PEAC: from PNG files to two normalised views, the plain way beside the bundle's, on one core.

    python benchmarks/peac_feed.py [--images 16] [--repeats 5] [--json feed.json]

The plain way is what a loader does that decodes and distorts every image in every epoch, on three channels of floats;
it is written for this comparison from the method's description. The bundle prepares an image once and keeps its bytes
in memory; a sample is then two crops of them, collated and distorted as a batch. Both give one distorted and one clean
normalised view. The ratio lasts across machines, the milliseconds do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from PIL import Image
from scipy.ndimage import gaussian_filter

CONFIG = Path(__file__).parents[1] / "bundles" / "peac" / "configs" / "pretrain.yaml"
GRID, CELL, SLACK = 14, 32, 4
VIEW, SIDE = GRID * CELL, (GRID + SLACK + 1) * CELL
MEAN, STD = 0.5056, 0.252
CURVE_POINTS = 1_000
WARM_UP = 3  # steps, until the loader's processes have started
SMALL_ENCODER = {
    "_target_": "anatomy_ssl.networks.SwinEncoder",
    "spatial_dims": 2,
    "in_channels": 1,
    "embed_dim": 32,
    "depths": [2, 2, 4],
    "num_heads": [1, 2, 4],
    "window_size": 7,
    "patch_size": 4,
}


def write_images(folder: Path, count: int, side: int = 1024) -> None:
    """Smooth structures with some noise, 8 bit: they compress about as a radiograph does."""
    random = np.random.default_rng(0)
    for number in range(count):
        image = gaussian_filter(random.random((side, side)), 24)
        image = (image - image.min()) / np.ptp(image) * 230 + random.normal(0, 3, (side, side))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"image_{number:03d}.png")


def plain_sample(path: Path, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Decode, resize, cut, distort and normalise one image by itself: two views `(3, VIEW, VIEW)` float32."""
    image = np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    floats = image.astype(np.float32) / 255
    offset = random.integers(CELL, size=2)
    corners = [offset + CELL * random.integers(SLACK + 1, size=2) for _ in range(2)]
    first, second = (floats[r : r + VIEW, c : c + VIEW].copy() for r, c in corners)
    if random.random() < 0.5:
        order = random.permutation(GRID * GRID)
        cells = [first[CELL * (i // GRID) :, CELL * (i % GRID) :][:CELL, :CELL].copy() for i in order]
        for place, cell in enumerate(cells):
            first[CELL * (place // GRID) :, CELL * (place % GRID) :][:CELL, :CELL] = cell
    else:
        first = plain_paint(plain_curve(plain_shuffle(first, random), random), random)
    return tuple(((v - MEAN) / STD).transpose(2, 0, 1).astype(np.float32) for v in (first, second))  # type: ignore


def plain_shuffle(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shuffle the pixels of 40 windows."""
    for _ in range(40):
        rows, columns = random.integers(1, VIEW // 10 + 1, size=2)
        row, column = random.integers(VIEW - rows), random.integers(VIEW - columns)
        window = image[row : row + rows, column : column + columns]
        image[row : row + rows, column : column + columns] = random.permutation(window.reshape(-1, 3)).reshape(
            window.shape
        )
    return image


def plain_curve(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A Bezier curve of the intensities, by interpolation between its points."""
    if random.random() >= 0.9:
        return image
    t = np.linspace(0, 1, CURVE_POINTS)[:, None]
    points = np.array([[0, 0], random.random(2), random.random(2), [1, 1]])
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    xs, ys = (weights @ points).T
    if random.random() < 0.5:
        xs, ys = np.sort(xs), np.sort(ys)
    rising = np.argsort(xs)
    return np.interp(image, xs[rising], ys[rising]).astype(np.float32)


def plain_paint(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noise inside five windows, or outside of five larger ones."""
    if random.random() >= 0.9:
        return image
    keep = random.random() < 0.8
    low, high = (VIEW * 3 // 7, VIEW * 4 // 7) if keep else (VIEW // 6, VIEW // 3)
    result = random.random(image.shape).astype(np.float32) if keep else image.copy()
    for _ in range(5):
        rows, columns = random.integers(low, high + 1, size=2)
        row, column = random.integers(VIEW - rows), random.integers(VIEW - columns)
        box = (slice(row, row + rows), slice(column, column + columns))
        result[box] = image[box] if keep else random.random((rows, columns, 3))
    return result


def bundle(folder: Path, **changes: Any) -> ConfigParser:
    """The bundle's pre-training on a folder, not run."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    cpu = {"device": "$torch.device('cpu')", "num_workers": 0, "tensorboard": False, "mlflow": False}
    parser.update({"dataset_dir": str(folder), "output_dir": str(folder / "out"), **cpu, **changes})
    return parser


def time_feeding(folder: Path, repeats: int) -> dict[str, float]:
    """Milliseconds per sample of both ways, in turn so that both meet the same load; medians of the repeats."""
    files, random = sorted(folder.glob("*.png")), np.random.default_rng(0)
    parser = bundle(folder, validation_fraction=0)
    started = time.perf_counter()
    dataset = parser.get_parsed_content("train#dataset")
    once = (time.perf_counter() - started) / len(files) * 1e3
    loader, prepare = (parser.get_parsed_content(f"train#{name}") for name in ("dataloader", "prepare_batch"))

    def plain() -> None:
        for file in files:
            for view in plain_sample(file, random):
                torch.from_numpy(view)

    def ours() -> None:
        for batch in loader:
            prepare(batch, device=torch.device("cpu"))

    spent: dict[Callable[[], None], list[float]] = {plain: [], ours: []}
    for run in (plain, ours) * (repeats + 1):
        started = time.process_time()
        run()
        spent[run].append((time.process_time() - started) / len(dataset) * 1e3)
    slow, fast = (statistics.median(times[1:]) for times in spent.values())  # the first of each warms up
    return {"plain_ms": slow, "bundle_ms": fast, "ratio": slow / fast, "preparation_once_ms": once}


def time_waiting(folder: Path, steps: int) -> dict[str, float]:
    """What a training step of a small Swin at 224 pixels waits for, with two loader processes; shares of its time."""
    parser = bundle(folder, validation_fraction=0, cell_size=16, num_workers=2, repeats=steps + WARM_UP)
    parser.update({"encoder": SMALL_ENCODER, "global_features": 512, "local_features": 128, "images_per_batch": 8})
    names = ("network", "loss", "optimizer", "train#dataloader", "train#prepare_batch")
    network, loss, optimizer, loader, prepare = (parser.get_parsed_content(name) for name in names)
    batches, times = iter(loader), []
    for _ in range(steps + WARM_UP):
        begin = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        views, targets = prepare(batch)
        distorted = time.perf_counter()
        optimizer.zero_grad()
        loss(network(views), targets).backward()
        optimizer.step()
        times.append((ready - begin, distorted - ready, time.perf_counter() - begin))
    waiting, distorting, whole = np.sum(times[WARM_UP:], axis=0)
    return {
        "step_ms": whole / steps * 1e3,
        "waiting_share": waiting / whole,
        "distorting_share": distorting / whole,
    }


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=16, help="PNG files of 1024 x 1024 pixels")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--steps", type=int, default=10, help="training steps of a small Swin; 0 for none")
    options.add_argument("--json", type=Path, help="write the numbers to this file")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    # a freed block of 32 MB, as any training has them, tells glibc to keep memory: else every batch pays for new pages
    torch.empty(7_900_000)
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name), chosen.images)
        numbers = time_feeding(Path(name), chosen.repeats)
        if chosen.steps:
            numbers |= time_waiting(Path(name), chosen.steps)
    for key, value in numbers.items():
        print(f"{key:>20} {value:10.3f}")
    if chosen.json:
        chosen.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
