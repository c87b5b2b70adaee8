"""A point's best match by its anatomical embedding: whole volumes, every place of a store, coarse to fine; one core.

Embeddings are synthetic: smooth fields of unit vectors; the target is the source, moved by some entries, with noise.
The plain way is what a matcher does that keeps embeddings as whole files; it is written for this comparison from the
method's description: load both volumes, bring the coarse maps to the fine grid, normalise all of it, convolve with the
query. The exhaustive way scores every place of a memory-mapped store, where all is normalised already. The bundle's way
opens the store and searches coarse to fine; it has to give the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from anatomy_ssl.data.embedding_store import EmbeddingStore
from anatomy_ssl.matching import DenseEmbedding
from anatomy_ssl.matching.search import best_match, exhaustive_match, refine_peak

from .timing import Row, Settings, alternate, compare, threads

RATIO = 4  # entries of the fine map to one of the coarse map
SHIFT = (5, -3, 4)  # entries from source to target
NOISE = 0.3  # standard deviation, of fields of about 0.6


def run(settings: Settings) -> list[Row]:
    """Rows of one query and of many at once."""
    shape = settings.pick((100, 100, 100), (64, 64, 64), (24, 24, 24))
    features, queries = settings.pick((128, 32), (128, 16), (8, 4))
    with threads(1):
        return _run(settings, shape, features, queries)


def _run(settings: Settings, shape: Sequence[int], features: int, queries: int) -> list[Row]:
    store, items = write(settings.folder / "embeddings", synthetic_pair(shape, features))
    random = torch.Generator().manual_seed(1)
    entries = torch.stack([torch.randint(6, n - 6, (queries,), generator=random) for n in shape], dim=1)
    target = store.get(items[1])

    def vectors(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        there = store.get(items[0])
        fine, coarse = there.vectors_at(there.to_world(places.numpy()))
        return torch.from_numpy(fine), torch.from_numpy(coarse)

    fine, coarse = vectors(entries)
    lost = [F.normalize(torch.randn(queries, features, generator=random), dim=1) for _ in range(2)]
    same = same_places((fine, coarse), target) + same_places(lost, target)
    if same < 2 * queries:
        raise ValueError(f"coarse to fine gave another place than the exhaustive search for {2 * queries - same}")

    def whole() -> torch.Tensor:
        return plain_match(*(settings.folder / "embeddings" / f"{name}.pt" for name in "ab"), entries[0])

    def ours() -> torch.Tensor:
        query = vectors(entries[:1])
        there = store.get(items[1])
        return refine_peak(*query, there, best_match(*query, there)[0])

    label = f"match in {' x '.join(map(str, shape))} entries of {features}"
    one = fine[:1], coarse[:1]
    rows = [
        _row(settings, f"{label}: whole volumes, with load", whole, ours, 150),
        _row(settings, f"{label}: every place", *_searches(one, target), 50),
    ]
    rows += [
        _row(settings, f"{label}: every place, {queries} at once", *_searches((fine, coarse), target)),
        _row(settings, f"{label}: every place, {queries} without a match", *_searches(lost, target)),
    ]
    rows[0].note = f"same places as every place: {same} of {2 * queries}"
    return rows


def _row(
    settings: Settings, what: str, plain: Callable[[], Any], ours: Callable[[], Any], at_least: float | None = None
) -> Row:
    spent = alternate({"plain": plain, "ours": ours}, min(5, settings.repeats))
    return compare(what, spent["plain"], spent["ours"], at_least)


def _searches(query: Sequence[torch.Tensor], target: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The exhaustive one, and coarse to fine."""
    return lambda: exhaustive_match(*query, target), lambda: best_match(*query, target)


def same_places(query: Sequence[torch.Tensor], target: Any) -> int:
    """For how many queries both searches find the same place."""
    found, expected = best_match(*query, target)[0], exhaustive_match(*query, target)[0]
    return int((found == expected).all(dim=1).sum())


def smooth_field(shape: Sequence[int], features: int, step: int, random: torch.Generator) -> torch.Tensor:
    """`(features, *shape)`: random numbers at every `step`-th entry, interpolated between."""
    knots = torch.randn(1, features, *[n // step + 2 for n in shape], generator=random)
    return F.interpolate(knots, size=tuple(shape), mode="trilinear", align_corners=True)[0]


def synthetic_pair(shape: Sequence[int], features: int) -> list[DenseEmbedding]:
    """Two volumes with the same content in other places."""
    random = torch.Generator().manual_seed(0)
    fine = smooth_field(shape, features, 3, random)
    coarse = smooth_field(shape, features, 3 * RATIO, random)
    pair = []
    for name, shift in (("a", (0, 0, 0)), ("b", SHIFT)):
        maps = [fine.roll(shift, (1, 2, 3)), coarse.roll(shift, (1, 2, 3))[:, ::RATIO, ::RATIO, ::RATIO]]
        maps = [m + NOISE * torch.randn(m.shape, generator=random) for m in maps]
        rows = [F.normalize(m, dim=0).movedim(0, -1).contiguous().half().numpy() for m in maps]
        size = tuple(2 * n for n in shape)
        pair.append(DenseEmbedding(*rows, np.diag([2.0, 2.0, 2.0, 1.0]), 2, 2 * RATIO, size, name, f"{name}.nii.gz"))
    return pair


def write(folder: Path, pair: Sequence[DenseEmbedding]) -> tuple[EmbeddingStore, list[dict[str, str]]]:
    """The store, and beside it the maps as whole files for the plain way."""
    folder.mkdir()
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
