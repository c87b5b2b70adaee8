"""MONAI's losses of two views, and distances of all pairs, beside this package's: time and memory of a step.

Memory is what a process of its own takes beyond what it held before, at most (on a GPU, what torch held at most), so
each measurement starts Python anew:

    python -m benchmarks.losses ntxent plain 256 1024 cpu
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import monai.losses
import torch
import torch.nn.functional as F

from anatomy_ssl.losses import BarlowTwinsLoss, NTXentLoss, PhysicalDistanceLoss

from .memory import most_resident
from .timing import Row, Settings, alternate, compare

SUBJECTS = 64
PAIRS = {
    "ntxent": (monai.losses.ContrastiveLoss, NTXentLoss),
    "barlow": (monai.losses.BarlowTwinsLoss, BarlowTwinsLoss),
}
NAMES = {"ntxent": "NT-Xent by MONAI's ContrastiveLoss", "barlow": "Barlow Twins by MONAI's BarlowTwinsLoss"}
# how many tensors (2N, 2N, F) MONAI's ContrastiveLoss holds at once, as measured where it fits
HELD = 6


def run(settings: Settings) -> list[Row]:
    """Rows of all losses."""
    features = 16 if settings.size == "tiny" else 1024
    rows = []
    for name in PAIRS:
        for number in settings.pick((256, 1024, 4096), (256, 1024), (8,)):
            rows.append(seconds(settings, name, number, features))
            if settings.size == "full" or name == "ntxent":
                rows.append(megabytes(settings, name, number, features))
    return [*rows, distances(settings, *settings.pick((4096, features), (2048, features), (128, features)))]


def seconds(settings: Settings, name: str, number: int, features: int) -> Row:
    """Time of a loss of two views."""
    what = f"{NAMES[name]}, N = {number}, F = {features}: time"
    ways = {"ours": step(name, "ours", number, features, settings.device)}
    if plain_bytes(name, number, features) < settings.memory:
        ways = {"plain": step(name, "plain", number, features, settings.device), **ways}
    spent = alternate(ways, settings.pick(3, 1, 1), settings.device)
    if "plain" in spent:
        return compare(what, spent["plain"], spent["ours"])
    return Row(what, spent["ours"].wall, note="plain does not fit", cpu={"ours": spent["ours"].cpu})


def megabytes(settings: Settings, name: str, number: int, features: int) -> Row:
    """Peak memory of a loss of two views."""
    needed, note = plain_bytes(name, number, features), ""
    ours = peak_megabytes(name, "ours", number, features, settings.device)
    if needed < settings.memory:
        plain = peak_megabytes(name, "plain", number, features, settings.device)
    else:
        plain, note = needed / 1e6, "plain: estimated, does not fit"
    most = 100 if (name, number, features) == ("ntxent", 1024, 1024) else None
    what = f"{NAMES[name]}, N = {number}, F = {features}: peak memory"
    return Row(what, [ours], [plain], unit="MB", at_most=most, note=note)


def plain_bytes(name: str, number: int, features: int) -> float:
    """What MONAI's loss takes at most, about: its cosine similarity is of tensors (2N, 2N, F)."""
    if name == "ntxent":
        return HELD * 4.0 * (2 * number) ** 2 * features
    return 4.0 * (10 * number * features + 8 * features**2)


def step(name: str, way: str, number: int, features: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """Forward and backward of a loss of random views; the loss."""
    random = torch.Generator().manual_seed(0)
    views = [torch.randn(number, features, generator=random).to(device).requires_grad_() for _ in range(2)]
    loss = PAIRS[name][way == "ours"]()

    def once() -> torch.Tensor:
        for view in views:
            view.grad = None
        value = loss(*views)
        value.backward()
        return value.detach()

    return once


def distances(settings: Settings, number: int, features: int) -> Row:
    """Distances within subjects: of all pairs, others masked, and of the blocks alone. Both losses have to be equal."""
    random = torch.Generator().manual_seed(0)
    embedding = torch.randn(number, features, generator=random).to(settings.device).requires_grad_()
    position = (torch.rand(number, 3, generator=random) * 300).to(settings.device)
    subject = torch.arange(number) % SUBJECTS
    mask = (subject[:, None] == subject).logical_and(~torch.eye(number, dtype=torch.bool)).to(settings.device)
    loss = PhysicalDistanceLoss(reference_length=100.0)

    def plain() -> torch.Tensor:
        embedding.grad = None
        latent, physical = torch.cdist(embedding, embedding), torch.cdist(position, position) / 100.0
        value = F.mse_loss(latent[mask], physical[mask])
        value.backward()
        return value.detach()

    def ours() -> torch.Tensor:
        embedding.grad = None
        value = loss(embedding, position, subject)
        value.backward()
        return value.detach()

    torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=1e-3)
    spent = alternate({"plain": plain, "ours": ours}, settings.repeats, settings.device)
    what = f"distances within {SUBJECTS} subjects, N = {number}, F = {features}: all pairs, masked, by blocks"
    return compare(what, spent["plain"], spent["ours"], 10)


def peak_megabytes(name: str, way: str, number: int, features: int, device: torch.device) -> float:
    """Of forward and backward, in a process of its own, beyond inputs and libraries."""
    words = [sys.executable, "-m", "benchmarks.losses", name, way, str(number), str(features), str(device)]
    root = Path(__file__).parents[1]
    found = subprocess.run(words, check=True, capture_output=True, text=True, cwd=root)
    return float(found.stdout.split()[-1])


def main(name: str, way: str, number: str, features: str, device: str) -> None:
    """Measure in this process and print."""
    where = torch.device(device)
    step(name, way, 4, int(features), where)()  # libraries are loaded, and have their own memory
    once = step(name, way, int(number), int(features), where)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
    else:
        before = most_resident()
        once()
        print((most_resident() - before) / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
