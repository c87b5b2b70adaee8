"""Where in a volume a pair of vectors fits best: coarse first, fine where it can still matter, and yet exact.

The score of a place is the mean of two cosines, of the fine vector and of the coarse one interpolated to that place
(SAM, Yan et al., TMI 2022, section III.D). As no cosine is above 1, (1 + coarse cosine) / 2 bounds the score: places
that cannot reach the best score found so far are never read. Of equal scores the first place in memory wins.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from anatomy_ssl.data.stored_embedding import StoredEmbedding

__all__ = ["best_match", "exhaustive_match", "refine_peak", "scores_at", "similarity_map"]

BATCH = 32  # queries at once
CHUNK = 4096  # fine vectors read at once
SEEDS = 64  # fine vectors from which a search starts
SCAN_SHARE = 0.2  # of the fine map: where more of it has to be read, reading it in order is faster


def best_match(
    query_fine: torch.Tensor, query_coarse: torch.Tensor, target: StoredEmbedding, min_score: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of each query's highest score, by branch and bound; the same as `exhaustive_match`.

    Args:
        query_fine: `(Q, F)` float, unit vectors.
        query_coarse: `(Q, F)` float, unit vectors.
        target: the volume to search.
        min_score: lower scores are of no use: where none reaches it, the search ends early with the best place met so
            far, whose score is below it. None finds the best of all.

    Returns:
        index `(Q, D)` int64 in the fine map, and score `(Q,)` float32.

    Raises:
        ValueError: the queries' shape does not fit the target, or they are not finite.
    """
    _check(query_fine, query_coarse, target)
    found = [_Search(fine, coarse, target, min_score).run() for fine, coarse in _batches(query_fine, query_coarse)]
    return _as_index(found, target)


def exhaustive_match(
    query_fine: torch.Tensor, query_coarse: torch.Tensor, target: StoredEmbedding
) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of each query's highest score, by looking at all of them; see `best_match`."""
    _check(query_fine, query_coarse, target)
    found = []
    for fine, coarse in _batches(query_fine, query_coarse):
        search = _Search(fine, coarse, target)
        search.scan(list(range(len(fine))))
        found.append(search.decide())
    return _as_index(found, target)


def similarity_map(query_fine: torch.Tensor, query_coarse: torch.Tensor, target: StoredEmbedding) -> torch.Tensor:
    """Scores of queries `(Q, F)` at all places of the target, `(Q, *grid)` float32."""
    _check(query_fine, query_coarse, target)
    maps = []
    for fine, coarse in _batches(query_fine, query_coarse):
        search = _Search(fine, coarse, target)
        maps.append(torch.cat([scores.float() for _, scores in search.slabs(list(range(len(fine))))], dim=1))
    return torch.cat(maps).reshape(-1, *target.fine.shape[:-1])


def scores_at(
    query_fine: torch.Tensor, query_coarse: torch.Tensor, target: StoredEmbedding, index: torch.Tensor
) -> torch.Tensor:
    """Score `(Q,)` float64 of each query `(Q, F)` at a place of its own, index `(Q, D)` in the fine map.

    Sums are taken in an order that depends on the place alone: equal vectors have equal scores, whoever asks.
    """
    where = tuple(index.numpy().T)
    cell, place = target.cells.locate(np.ravel_multi_index(where, target.fine.shape[:-1]))
    fine, coarse = (query.numpy().astype(np.float64) for query in (query_fine, query_coarse))
    corners = target.coarse.reshape(-1, coarse.shape[1])[target.cells.corners[cell]]
    cosine = _row_sum(_row_sum(corners * coarse[:, None]) * target.cells.weights[place]) / target.norms[cell, place]
    return torch.from_numpy((_row_sum(target.fine[where] * fine) + cosine) / 2)


def refine_peak(
    query_fine: torch.Tensor,
    query_coarse: torch.Tensor,
    target: StoredEmbedding,
    index: torch.Tensor,
    reach: int = 2,
    sharpness: float = 40.0,
) -> torch.Tensor:
    """Places between the map's entries: the centroid of the scores around the best entry.

    An entry with score s counts exp(sharpness * (s - best score)). On CT of head and neck this is 10% nearer to organs
    than the top of a parabola through the neighbours, and 20% nearer than the entry itself.

    Args:
        query_fine: `(Q, F)`.
        query_coarse: `(Q, F)`.
        target: the volume.
        index: `(Q, D)` of each query's best entry.
        reach: entries to each side that count, those within the map.
        sharpness: the higher, the closer to the best entry.

    Returns:
        `(Q, D)` float64, within the map.
    """
    grid = target.fine.shape[:-1]
    steps = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * len(grid)).reshape(-1, len(grid))
    refined = [torch.zeros(0, len(grid), dtype=torch.float64)]
    for (fine, coarse), centre in zip(_batches(query_fine, query_coarse), index.split(BATCH)):
        around = centre[:, None] + steps
        inside = ((around >= 0) & (around < torch.tensor(grid))).all(dim=2)
        around = around.where(inside[:, :, None], centre[:, None])
        scores = _Search(fine, coarse, target).at(np.ravel_multi_index(tuple(around.permute(2, 0, 1).numpy()), grid))
        weights = (sharpness * (scores - scores.max(dim=1, keepdim=True).values)).exp().double() * inside
        refined.append((around * (weights / weights.sum(dim=1, keepdim=True))[:, :, None]).sum(dim=1))
    return torch.cat(refined)


class _Search:
    """One batch of queries in one volume. Fast scores are in single precision; what they cannot tell apart is decided
    by `scores_at`.
    """

    def __init__(
        self, fine: torch.Tensor, coarse: torch.Tensor, target: StoredEmbedding, min_score: float | None = None
    ) -> None:
        features = target.fine.shape[-1]
        self.fine, self.coarse, self.target = fine.float(), coarse.float(), target
        self.rows = torch.from_numpy(target.fine.reshape(-1, features))
        self.norms = torch.from_numpy(target.norms)
        cells = target.cells
        self.corners, self.weights = torch.from_numpy(cells.corners), torch.from_numpy(cells.weights).float()
        self.first, self.offsets = torch.from_numpy(cells.first), torch.from_numpy(cells.offsets)
        self.dots = self.coarse @ torch.from_numpy(target.coarse.reshape(-1, features)).float().T
        limit = self.fine.norm(dim=1) * (target.largest_norm * (1 + 1e-6))
        # rounding of sums of `features` products in single precision, of which the coarse one is divided by a norm
        rounding = (features + 16) * 2.0**-24
        self.tolerance = (rounding * (limit + self.coarse.norm(dim=1) / float(target.cell_norms[0].min()))).tolist()
        self.limit = limit.tolist()
        self.floor = -float("inf") if min_score is None else float(min_score)
        self.best = [-float("inf")] * len(fine)
        self.found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in self.best]

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Branch and bound."""
        highest = self._highest_corner()
        smallest, largest = torch.from_numpy(self.target.cell_norms)
        bounds = torch.where(highest > 0, highest / smallest, highest / largest)
        self._begin(highest.topk(min(2 * self.corners.shape[1], highest.shape[1])).indices)
        unsettled = [q for q in range(len(self.best)) if not self._settle(q, bounds[q])]
        if unsettled:
            self.scan(unsettled)
        return self.decide()

    def _highest_corner(self) -> torch.Tensor:
        """The largest coarse dot product at the corners of each cell, `(Q, cells)`: none in between is larger."""
        x = self.dots.reshape(len(self.dots), *self.target.cells.coarse)
        for axis in range(1, x.ndim):
            n = x.shape[axis]
            pairs = torch.maximum(x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1))
            x = torch.cat([pairs, x.narrow(axis, n - 1, 1)], dim=axis)
        return x.flatten(1)

    def _begin(self, cells: torch.Tensor) -> None:
        """Score the likeliest places of the likeliest cells `(Q, C)` of each query."""
        dots = self.dots.gather(1, self.corners[cells].flatten(1)).view(*cells.shape, -1)
        cosine = (dots @ self.weights.T / self.norms[cells]).nan_to_num(-torch.inf).flatten(1)
        cosine, place = cosine.topk(min(SEEDS, cosine.shape[1]))
        place, cosine = (x.where(cosine.isfinite(), x[:, :1]) for x in (place, cosine))  # NaN lies beyond the fine map
        voxels = (self.first[cells][:, :, None] + self.offsets).flatten(1).gather(1, place)
        rows = self.rows.index_select(0, voxels.flatten()).float().view(*voxels.shape, -1)
        scores = ((rows @ self.fine[:, :, None])[..., 0] + cosine) / 2
        for q in range(len(cells)):
            self._keep(q, voxels[q], scores[q])

    def _needed(self, q: int) -> float:
        """The coarse cosine below which a place cannot have the best score, nor a useful one."""
        return 2 * (max(self.best[q], self.floor) - 2 * self.tolerance[q]) - self.limit[q]

    def _settle(self, q: int, bounds: torch.Tensor) -> bool:
        """Search for one query; false where so much is to be read that a scan is better."""
        cells = (bounds >= self._needed(q)).nonzero()[:, 0]
        cosine = self.dots[q][self.corners[cells]] @ self.weights.T / self.norms[cells]  # NaN beyond the fine map
        cell, place = (cosine >= self._needed(q)).nonzero(as_tuple=True)
        if len(cell) > SCAN_SHARE * len(self.rows):
            return False
        values, order = cosine[cell, place].sort(descending=True)
        voxels = (self.first[cells[cell]] + self.offsets[place])[order]
        for start in range(0, len(voxels), CHUNK):
            part = slice(start, start + int((values[start : start + CHUNK] >= self._needed(q)).sum()))
            if part.start == part.stop:
                break
            fine = self.rows.index_select(0, voxels[part]).float() @ self.fine[q]
            self._keep(q, voxels[part], (fine + values[part]) / 2)
        return True

    def _keep(self, q: int, voxels: torch.Tensor, scores: torch.Tensor) -> None:
        self.best[q] = max(self.best[q], float(scores.max()))
        near = scores >= self.best[q] - 2 * self.tolerance[q]
        if near.any():
            self.found[q].append((voxels[near], scores[near]))

    def scan(self, queries: list[int]) -> None:
        """Score everything for some queries."""
        for start, scores in self.slabs(queries):
            voxels = torch.arange(start, start + scores.shape[1])
            for q, row in zip(queries, scores):
                self._keep(q, voxels, row)

    def at(self, voxels: np.ndarray) -> torch.Tensor:
        """Scores `(Q, M)` of each query at flat fine indices `(Q, M)` of its own."""
        cell, place = (
            torch.from_numpy(found.reshape(voxels.shape)) for found in self.target.cells.locate(voxels.ravel())
        )
        dots = self.dots.gather(1, self.corners[cell].flatten(1)).view(*voxels.shape, -1)
        cosine = (dots * self.weights[place]).sum(dim=2) / self.norms[cell, place]
        rows = self.rows.index_select(0, torch.from_numpy(voxels.ravel())).float().view(*voxels.shape, -1)
        return ((rows @ self.fine[:, :, None])[..., 0] + cosine) / 2

    def slabs(self, queries: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """All scores, one layer of cells after the other: first flat index, and scores `(queries, places)` in order."""
        fine, coarse, ratio = (getattr(self.target.cells, name) for name in ("fine", "coarse", "ratio"))
        dims, layer, plane = len(fine), int(np.prod(coarse[1:])), int(np.prod(fine[1:]))
        # cells and places, axis by axis
        order = [0, dims, *[n for axis in range(1, dims) for n in (axis, dims + axis)]]
        queries_fine, dots = self.fine[queries], self.dots[queries]
        for j in range(coarse[0]):
            cells = slice(j * layer, (j + 1) * layer)
            cosine = dots[:, self.corners[cells]] @ self.weights.T / self.norms[cells]
            cosine = cosine.reshape(len(queries), *coarse[1:], *[ratio] * dims).permute(order)
            cosine = cosine.reshape(len(queries), ratio, *[n * ratio for n in coarse[1:]])
            depth = min(ratio, fine[0] - j * ratio)
            inside = (slice(None), slice(depth), *[slice(n) for n in fine[1:]])
            cosine = cosine[inside].flatten(1)
            start = j * ratio * plane
            rows = self.rows[start : start + depth * plane].float()
            yield start, (queries_fine @ rows.T + cosine) / 2

    def decide(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat index and score `(Q,)` of the best places, of equal ones the first."""
        candidates = []
        for q, found in enumerate(self.found):
            voxels, scores = (torch.cat(parts) for parts in zip(*found))
            candidates.append(voxels[scores >= self.best[q] - 2 * self.tolerance[q]].unique())
        owners = torch.repeat_interleave(torch.tensor([len(voxels) for voxels in candidates]))
        index = torch.stack(torch.unravel_index(torch.cat(candidates), self.target.cells.fine), dim=1)
        exact = torch.cat(
            [
                scores_at(self.fine[owner], self.coarse[owner], self.target, place)
                for owner, place in zip(owners.split(CHUNK), index.split(CHUNK))
            ]
        )
        # numpy's argmax is the first of equal ones
        tops = [int(part.numpy().argmax()) for part in exact.split([len(voxels) for voxels in candidates])]
        best = torch.stack([part[top] for part, top in zip(exact.split([len(v) for v in candidates]), tops)])
        return torch.stack([voxels[top] for voxels, top in zip(candidates, tops)]), best


def _row_sum(x: np.ndarray) -> np.ndarray:
    """Sum over the last axis, half by half: unlike a library's sum, in one order for any number of rows."""
    while (n := x.shape[-1]) > 1:
        x, odd = x[..., : n // 2] + x[..., n // 2 : n // 2 * 2], x[..., n // 2 * 2 :]
        if n % 2:
            x = np.concatenate([x, odd], axis=-1)
    return x[..., 0]


def _check(fine: torch.Tensor, coarse: torch.Tensor, target: StoredEmbedding) -> None:
    features = target.fine.shape[-1]
    if fine.shape != coarse.shape or fine.ndim != 2 or fine.shape[1] != features:
        raise ValueError(
            f"queries have to be (Q, {features}) vectors as in {target.source}, not {tuple(fine.shape)} and "
            f"{tuple(coarse.shape)}"
        )
    if not (torch.isfinite(fine).all() and torch.isfinite(coarse).all()):
        raise ValueError(f"queries for {target.source} are not finite")


def _batches(fine: torch.Tensor, coarse: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(fine.split(BATCH), coarse.split(BATCH)) if len(fine) else iter(())


def _as_index(
    found: list[tuple[torch.Tensor, torch.Tensor]], target: StoredEmbedding
) -> tuple[torch.Tensor, torch.Tensor]:
    grid = target.fine.shape[:-1]
    if not found:
        return torch.zeros(0, len(grid), dtype=torch.int64), torch.zeros(0)
    voxels, scores = (torch.cat(parts) for parts in zip(*found))
    return torch.stack(torch.unravel_index(voxels, grid), dim=1), scores.float()
