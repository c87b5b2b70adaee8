"""The embedding of one volume in the form that is searched."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from nibabel.affines import apply_affine

if TYPE_CHECKING:
    from anatomy_ssl.matching.dense import DenseEmbedding

__all__ = ["CellGrid", "StoredEmbedding", "interpolate_rows"]

SMALLEST_NORM = 0.05  # of interpolated coarse vectors: where they cancel out, they say nothing and get a cosine near 0
CHUNK = 1 << 24  # numbers at once


@dataclass(frozen=True, eq=False)
class CellGrid:
    """How the fine map's entries lie between those of the coarse map.

    A cell starts at an entry of the coarse map and reaches to the next ones; `ratio ** D` entries of the fine map lie
    in it, always at the same places. At the end of the grid the coarse map is carried on as it is.

    Args:
        fine: entries of the fine map along each axis.
        coarse: entries of the coarse map along each axis.
        ratio: coarse stride over fine stride.

    Raises:
        ValueError: the maps are not of one volume.
    """

    fine: tuple[int, ...]
    coarse: tuple[int, ...]
    ratio: int

    def __post_init__(self) -> None:
        if tuple(-(-n // self.ratio) for n in self.fine) != self.coarse:
            raise ValueError(
                f"maps of {self.fine} and {self.coarse} entries do not belong together: with strides of ratio "
                f"{self.ratio} the coarse one has a cell for every {self.ratio} entries begun"
            )

    @cached_property
    def corners(self) -> np.ndarray:
        """`(cells, 2 ** D)` int64: flat indices of the coarse entries around each cell."""
        index = np.indices(self.coarse)
        last = np.array(self.coarse).reshape(-1, *[1] * len(self.coarse)) - 1
        steps = itertools.product((0, 1), repeat=len(self.coarse))
        moved = [np.minimum(index + np.reshape(step, last.shape), last) for step in steps]
        return np.stack([np.ravel_multi_index(tuple(m), self.coarse).ravel() for m in moved], axis=1)

    @cached_property
    def weights(self) -> np.ndarray:
        """`(ratio ** D, 2 ** D)` float64: share of each corner in each place of a cell."""
        places = np.stack(np.meshgrid(*[np.arange(self.ratio)] * len(self.fine), indexing="ij"), -1)
        t = places.reshape(-1, 1, len(self.fine)) / self.ratio
        sides = np.array(list(itertools.product((0, 1), repeat=len(self.fine))))
        return np.where(sides == 1, t, 1 - t).prod(axis=2)

    @cached_property
    def first(self) -> np.ndarray:
        """`(cells,)` int64: flat index of the first fine entry in each cell."""
        start = np.indices(self.coarse).reshape(len(self.coarse), -1) * self.ratio
        return np.asarray(np.ravel_multi_index(tuple(start), self.fine))

    @cached_property
    def offsets(self) -> np.ndarray:
        """`(ratio ** D,)` int64: from a cell's first fine entry to the others, in flat indices."""
        strides = np.cumprod([1, *self.fine[:0:-1]])[::-1]
        places = np.indices((self.ratio,) * len(self.fine)).reshape(len(self.fine), -1)
        return strides @ places

    def inside(self, cells: slice) -> np.ndarray:
        """Which places of some cells are entries of the fine map, `(cells, ratio ** D)`; the last cells overhang."""
        index = np.indices(self.coarse).reshape(len(self.coarse), -1, 1)[:, cells] * self.ratio
        places = np.indices((self.ratio,) * len(self.fine)).reshape(len(self.fine), 1, -1)
        return np.asarray((index + places < np.reshape(self.fine, (-1, 1, 1))).all(axis=0))

    def locate(self, voxel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cell `(N,)` and place in it `(N,)` of flat fine indices `(N,)`."""
        index = np.unravel_index(voxel, self.fine)
        cell = np.ravel_multi_index(tuple(i // self.ratio for i in index), self.coarse)
        return cell, np.ravel_multi_index(tuple(i % self.ratio for i in index), (self.ratio,) * len(self.fine))


@dataclass(frozen=True, eq=False)
class StoredEmbedding:
    """The embedding of one volume. Entry i of a map lies at voxel stride * i of the prepared volume.

    Args:
        fine: `(*grid, F)` float16 unit vectors, usually mapped from a file.
        coarse: `(*grid_c, F)` float16 unit vectors.
        norms: `(cells, ratio ** D)` float32: norm of the coarse vectors interpolated to each fine entry, in the order
            of `cells`; NaN beyond the fine map.
        cell_norms: `(2, cells)` float32: smallest and largest of them in each cell.
        largest_norm: of the fine vectors, which are of unit length but for the rounding.
        affine: `(D + 1, D + 1)` float64 from voxels of the prepared volume to world mm (RAS+).
        fine_stride: voxels.
        coarse_stride: voxels.
        shape: `(D,)` voxels of the prepared volume.
        subject: the patient.
        source: the file.
    """

    fine: np.ndarray
    coarse: np.ndarray
    norms: np.ndarray
    cell_norms: np.ndarray
    largest_norm: float
    affine: np.ndarray
    fine_stride: int
    coarse_stride: int
    shape: tuple[int, ...]
    subject: str
    source: str

    @staticmethod
    def from_dense(dense: DenseEmbedding) -> StoredEmbedding:
        """Add what the search needs to a volume's embedding.

        Raises:
            ValueError: the vectors are not finite, or the maps are not of one volume.
        """
        if dense.coarse_stride % dense.fine_stride:
            raise ValueError(
                f"the coarse stride {dense.coarse_stride} is no multiple of the fine one {dense.fine_stride}"
            )
        grid = CellGrid(dense.fine.shape[:-1], dense.coarse.shape[:-1], dense.coarse_stride // dense.fine_stride)
        norms = _interpolated_norms(dense.coarse, grid)
        largest = _largest_norm(dense.fine)
        if not np.isfinite(largest) or not np.isfinite(dense.coarse).all():
            raise ValueError(f"{dense.source}: its embedding is not finite: train the embedding again")
        return StoredEmbedding(
            fine=dense.fine,
            coarse=dense.coarse,
            norms=norms,
            cell_norms=np.stack([np.nanmin(norms, axis=1), np.nanmax(norms, axis=1)]),
            largest_norm=largest,
            affine=np.asarray(dense.affine, dtype=np.float64),
            fine_stride=int(dense.fine_stride),
            coarse_stride=int(dense.coarse_stride),
            shape=tuple(int(n) for n in dense.shape),
            subject=dense.subject,
            source=dense.source,
        )

    @cached_property
    def cells(self) -> CellGrid:
        """How the two maps lie to each other."""
        return CellGrid(self.fine.shape[:-1], self.coarse.shape[:-1], self.coarse_stride // self.fine_stride)

    def to_index(self, points: np.ndarray) -> np.ndarray:
        """Fractional fine index `(N, D)` of points `(N, D)` in world mm."""
        return apply_affine(np.linalg.inv(self.affine), points) / self.fine_stride

    def to_world(self, index: np.ndarray) -> np.ndarray:
        """World mm `(N, D)` of fractional fine indices `(N, D)`."""
        return apply_affine(self.affine, np.asarray(index, dtype=np.float64) * self.fine_stride)

    @property
    def index_affine(self) -> np.ndarray:
        """`(D + 1, D + 1)` from fine index to world mm."""
        return self.affine @ np.diag([*[float(self.fine_stride)] * len(self.shape), 1.0])

    def vectors_at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fine and coarse vectors `(N, F)` float32 at any points `(N, D)` in world mm.

        They are interpolated linearly and brought to unit length; beyond the outermost entries, the maps are carried on
        as they are.
        """
        index = self.to_index(points)
        ratio = self.coarse_stride / self.fine_stride
        fine, coarse = interpolate_rows(self.fine, index), interpolate_rows(self.coarse, index / ratio)
        return _unit(fine), _unit(coarse)


def interpolate_rows(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Vectors of a map `(*grid, F)` at fractional indices `(N, D)`, linearly; `(N, F)` float32."""
    last = np.array(rows.shape[:-1]) - 1
    index = np.clip(index, 0, last)
    low = np.minimum(index.astype(np.int64), np.maximum(last - 1, 0))
    part = index - low
    total = np.zeros((len(index), rows.shape[-1]), dtype=np.float32)
    for side in itertools.product((0, 1), repeat=len(last)):
        weight = np.where(np.array(side) == 1, part, 1 - part).prod(axis=1)
        where = tuple(np.minimum(low + side, last).T)
        total += rows[where].astype(np.float32) * weight[:, None].astype(np.float32)
    return total


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _interpolated_norms(coarse: np.ndarray, grid: CellGrid) -> np.ndarray:
    """See `StoredEmbedding.norms`."""
    features = coarse.shape[-1]
    rows = coarse.reshape(-1, features)
    weights = grid.weights.astype(np.float32)
    norms = np.empty((len(rows), len(weights)), dtype=np.float32)
    step = max(1, CHUNK // (len(weights) * features))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        found = np.linalg.norm(weights @ rows[grid.corners[part]].astype(np.float32), axis=2)
        norms[part] = np.where(grid.inside(part), np.maximum(found, SMALLEST_NORM), np.nan)
    return norms


def _largest_norm(fine: np.ndarray) -> float:
    """Of the vectors of a map, NaN or infinite where one is."""
    rows = fine.reshape(-1, fine.shape[-1])
    step = max(1, CHUNK // rows.shape[1])
    parts = (rows[start : start + step].astype(np.float32) for start in range(0, len(rows), step))
    return float(np.max([np.linalg.norm(part, axis=1).max() for part in parts]))
