"""Views of an image on one lattice of cells, so that cells of two views coincide exactly where they overlap."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import ensure_tuple_rep

from anatomy_ssl.data.lookup_volume import LookupVolume, box_slices
from anatomy_ssl.data.reading import BadImageError

__all__ = ["RandGridViewsd", "match_cells"]


class RandGridViewsd(RandomizableTransform, MapTransform):
    """Cut views whose cells belong to one lattice (stable grid-based matching, PEAC, arXiv 2312.00335, section 3.1).

    A lattice of cells is laid over the middle of the image at a random offset of less than a cell; every view takes
    `grid_size` neighbouring cells of it, starting at a random cell. Any number of axes: (row, column) or (row, column,
    slice) as the image's own axes come; one tuple, one order, everywhere.

    Args:
        keys: images `(C, *spatial)`, at least `(grid_size + slack + 1) * cell_size` voxels along every axis. All keys
            are cut alike.
        grid_size: cells of a view along each axis.
        cell_size: voxels of a cell along each axis.
        slack: cells that the lattice has beyond a view, along each axis: views start at cell 0 to `slack`.
        num_views: views of each image.
        random_center: whether the lattice lies anywhere in larger images; else in their middle.

    A call gives `KEY_1` .. `KEY_V`, `(C, *grid_size * cell_size)`, instead of each key, and `cell_1` .. `cell_V`, the
    start of each view in the lattice, int64 `(D,)`, from which `match_cells` tells what coincides.

    Raises:
        BadImageError: for an image that is too small.
    """

    def __init__(
        self,
        keys: KeysCollection,
        grid_size: Sequence[int],
        cell_size: Sequence[int] | int,
        slack: Sequence[int] | int = 4,
        num_views: int = 2,
        random_center: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self)
        dims = len(grid_size)
        self.grid_size = tuple(int(n) for n in grid_size)
        self.cell_size, self.slack = (tuple(ensure_tuple_rep(value, dims)) for value in (cell_size, slack))
        self.num_views, self.random_center = num_views, random_center
        if min(*self.grid_size, *self.cell_size, num_views) < 1 or min(self.slack) < 0:
            raise ValueError(
                f"grid_size {self.grid_size}, cell_size {self.cell_size} and num_views {num_views} must be positive, "
                f"slack {self.slack} not negative"
            )

    @property
    def image_size(self) -> tuple[int, ...]:
        """Voxels that an image needs along each axis: the lattice and one cell for its offset."""
        return tuple((n + s + 1) * c for n, s, c in zip(self.grid_size, self.slack, self.cell_size))

    def randomize(self, data: Any = None) -> None:
        """Draw the lattice's offset in voxels, in images of size `data`, and the start of every view in cells."""
        super().randomize(None)
        over = [size - needed for size, needed in zip(data, self.image_size)]
        corner = [int(self.R.randint(o + 1)) if self.random_center else o // 2 for o in over]
        self.offset = [c + int(self.R.randint(size)) for c, size in zip(corner, self.cell_size)]
        self.starts = [[int(self.R.randint(s + 1)) for s in self.slack] for _ in range(self.num_views)]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut the views."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if any(size < needed for size, needed in zip(image.shape[1:], self.image_size)):
                raise BadImageError(
                    d.get("source", key),
                    f"is smaller ({tuple(image.shape[1:])} voxels) than the lattice of cells, {self.image_size}: "
                    "resize it to at least that, or lower grid_size, cell_size or slack",
                )
        self.randomize(d[self.first_key(d)].shape[1:])
        for key in self.key_iterator(d):
            image = d.pop(key)
            for number, start in enumerate(self.starts, start=1):
                begin = [o + s * c for o, s, c in zip(self.offset, start, self.cell_size)]
                size = [n * c for n, c in zip(self.grid_size, self.cell_size)]
                looked_up = isinstance(image, LookupVolume)
                d[f"{key}_{number}"] = image.boxes([begin], size)[0] if looked_up else image[box_slices(begin, size)]
        for number, start in enumerate(self.starts, start=1):
            d[f"cell_{number}"] = torch.tensor(start, dtype=torch.int64)
        return d


def match_cells(start_a: torch.Tensor, start_b: torch.Tensor, grid_size: Sequence[int]) -> torch.Tensor:
    """Which cell of view b shows the same part of the image as each cell of view a.

    Args:
        start_a: `(N, D)` int64, where the views a start in their lattices.
        start_b: `(N, D)`, likewise the views b.
        grid_size: cells of a view along each of the D axes.

    Returns:
        `(N, T)` int64 with T the cells of a view, last axis fastest: the number of the matching cell of view b, or -1
        where view b does not show it.
    """
    size = torch.tensor(tuple(grid_size), device=start_a.device)
    index = torch.cartesian_prod(*[torch.arange(n, device=start_a.device) for n in grid_size]).reshape(-1, len(size))
    place = index[None] + (start_a - start_b)[:, None]  # (N, T, D), in cells of view b
    inside = ((place >= 0) & (place < size)).all(dim=2)
    strides = torch.tensor([int(size[axis + 1 :].prod()) for axis in range(len(size))], device=start_a.device)
    return torch.where(inside, (place * strides).sum(dim=2), -1)
