"""Finding a point by its anatomical embedding: by whole volumes, by every place of a store, coarse to fine; one core.

    python benchmarks/alice_match.py [--shape 100 100 100] [--features 128] [--queries 32] [--json match.json]

Embeddings are synthetic: smooth fields of unit vectors; the target is the source, moved by some entries, with noise.
The plain way is what a matcher does that keeps embeddings as whole files; it is written for this comparison from the
method's description: load both volumes, bring the coarse maps to the fine grid, normalise all of it, convolve with the
query. The exhaustive way scores every place of a memory-mapped store, where all is normalised already. The bundle's way
opens the store and searches coarse to fine; it has to give the same places. Times are of processors; the ratios last
across machines, the milliseconds do not.
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
import torch.nn.functional as F

from anatomy_ssl.data.embedding_store import EmbeddingStore
from anatomy_ssl.matching import DenseEmbedding
from anatomy_ssl.matching.search import best_match, exhaustive_match, refine_peak

RATIO = 4  # entries of the fine map to one of the coarse map
SHIFT = (5, -3, 4)  # entries from source to target
TARGETS = {"exhaustive": 50, "whole": 150}  # times that the bundle's way is to be faster, for one match


def smooth_field(shape: list[int], features: int, step: int, random: torch.Generator) -> torch.Tensor:
    """`(features, *shape)`: random numbers at every `step`-th entry, interpolated between."""
    knots = torch.randn(1, features, *[n // step + 2 for n in shape], generator=random)
    return F.interpolate(knots, size=shape, mode="trilinear", align_corners=True)[0]


def synthetic_pair(shape: list[int], features: int, noise: float) -> tuple[DenseEmbedding, DenseEmbedding]:
    """Two volumes with the same content in other places."""
    random = torch.Generator().manual_seed(0)
    fine = smooth_field(shape, features, 3, random)
    coarse = smooth_field(shape, features, 3 * RATIO, random)
    pair = []
    for name, shift in (("a", (0, 0, 0)), ("b", SHIFT)):
        maps = [fine.roll(shift, (1, 2, 3)), coarse.roll(shift, (1, 2, 3))[:, ::RATIO, ::RATIO, ::RATIO]]
        maps = [m + noise * torch.randn(m.shape, generator=random) for m in maps]
        rows = [F.normalize(m, dim=0).movedim(0, -1).contiguous().half().numpy() for m in maps]
        size = tuple(2 * n for n in shape)
        pair.append(DenseEmbedding(*rows, np.diag([2.0, 2.0, 2.0, 1.0]), 2, 2 * RATIO, size, name, f"{name}.nii.gz"))
    return pair[0], pair[1]


def write(folder: Path, pair: tuple[DenseEmbedding, DenseEmbedding]) -> tuple[EmbeddingStore, list[dict[str, str]]]:
    """The store, and beside it the maps as whole files for the plain way."""
    store, items = EmbeddingStore(folder / "store"), []
    for dense in pair:
        image = folder / dense.source
        image.write_bytes(dense.source.encode())  # only looked at for changes
        items.append({"image": str(image), "subject": dense.subject})
        store.put(items[-1], dense)
        maps = {"fine": torch.from_numpy(dense.fine), "coarse": torch.from_numpy(dense.coarse)}
        torch.save(maps, folder / f"{dense.subject}.pt")
    return store, items


def plain_match(source: Path, target: Path, entry: torch.Tensor) -> torch.Tensor:
    """One entry of the source's fine map, found by loading, upsampling, normalising and convolving whole volumes."""
    whole = []
    for path in (source, target):
        maps = torch.load(path, weights_only=True)
        fine, coarse = (maps[name].movedim(-1, 0).float()[None] for name in ("fine", "coarse"))
        coarse = F.interpolate(coarse, size=fine.shape[2:], mode="trilinear", align_corners=False)
        whole.append([F.normalize(m, dim=1) for m in (fine, coarse)])
    i, j, k = entry.tolist()
    scores = sum(F.conv3d(there, here[:, :, i, j, k][..., None, None, None]) for here, there in zip(*whole)) / 2
    return torch.stack(torch.unravel_index(scores.argmax(), scores.shape[2:]))


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """Processor time, median."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return statistics.median(times) * 1e3


def measure(folder: Path, shape: list[int], features: int, queries: int, repeats: int, noise: float) -> dict[str, Any]:
    """Times of one match in milliseconds, ratios, and whether the places are the same."""
    store, items = write(folder, synthetic_pair(shape, features, noise))
    random = torch.Generator().manual_seed(1)
    entries = torch.stack([torch.randint(6, n - 6, (queries,), generator=random) for n in shape], dim=1)

    def vectors() -> tuple[torch.Tensor, torch.Tensor]:
        there = store.get(items[0])
        found = there.vectors_at(there.to_world(entries.numpy()))
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    fine, coarse = vectors()
    target = store.get(items[1])
    lost = [F.normalize(torch.randn(queries, features, generator=random), dim=1) for _ in range(2)]
    index, score = best_match(fine, coarse, target)
    expected, expected_score = exhaustive_match(fine, coarse, target)
    lost_index, lost_expected = best_match(*lost, target)[0], exhaustive_match(*lost, target)[0]

    def ours() -> None:
        query = [v[:1] for v in vectors()]
        there = store.get(items[1])
        refine_peak(*query, there, best_match(*query, there)[0])

    one = fine[:1], coarse[:1]
    ms = {
        "whole": milliseconds(lambda: plain_match(folder / "a.pt", folder / "b.pt", entries[0]), 2),
        "exhaustive": milliseconds(lambda: exhaustive_match(*one, target), repeats),
        "coarse_to_fine": milliseconds(lambda: best_match(*one, target), 5 * repeats),
        "coarse_to_fine_opened_refined": milliseconds(ours, 5 * repeats),
        "exhaustive_together": milliseconds(lambda: exhaustive_match(fine, coarse, target), repeats) / queries,
        "coarse_to_fine_together": milliseconds(lambda: best_match(fine, coarse, target), repeats) / queries,
        "unrelated_together": milliseconds(lambda: best_match(*lost, target), repeats) / queries,
        "unrelated_min_score_together": milliseconds(lambda: best_match(*lost, target, 0.7), repeats) / queries,
    }
    return {
        "same_places": int((index == expected).all(dim=1).sum() + (lost_index == lost_expected).all(dim=1).sum()),
        "of": 2 * queries,
        "same_scores": torch.equal(score, expected_score),
        "mean_score": float(score.mean()),
        "found_share": float((index == entries + torch.tensor(SHIFT)).all(dim=1).float().mean()),
        "megabytes_a_volume": target.fine.nbytes / 1e6,
        **{f"{name}_ms": value for name, value in ms.items()},
        "ratio_to_exhaustive": ms["exhaustive"] / ms["coarse_to_fine"],
        "ratio_to_exhaustive_together": ms["exhaustive_together"] / ms["coarse_to_fine_together"],
        "ratio_to_whole": ms["whole"] / ms["coarse_to_fine_opened_refined"],
    }


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--shape", type=int, nargs=3, default=[100, 100, 100], help="entries of the fine map; 4 mm each at 2 mm"
    )
    options.add_argument("--features", type=int, default=128)
    options.add_argument("--queries", type=int, default=32)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--noise", type=float, default=0.3, help="standard deviation, of fields of about 0.6")
    options.add_argument("--json", type=Path, help="write the numbers to this file")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        numbers = measure(Path(name), chosen.shape, chosen.features, chosen.queries, chosen.repeats, chosen.noise)
    for key, value in numbers.items():
        print(f"{key:>34} {value:10.3f}")
    for key, least in TARGETS.items():
        print(f"one match against {key}: {numbers[f'ratio_to_{key}']:.0f}x, to be at least {least}x")
    if chosen.json:
        chosen.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
