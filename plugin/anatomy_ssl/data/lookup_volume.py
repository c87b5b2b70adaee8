"""A volume of stored integers with the intensity that each of them stands for: what crops are read from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, MetaKeys

__all__ = ["LookupVolume", "Volume", "lowest_value", "read_boxes"]

CHUNK = 1 << 18  # voxels


@dataclass(eq=False)
class LookupVolume:
    """A volume `(C, *spatial)` as integers and a lookup table: half the memory of float32, and intensities bit by bit.

    It offers what crops need of a `MetaTensor` (`shape`, `affine`, `pixdim`, `meta`), and intensities where they are
    asked for. The integers may lie in a file that is mapped into memory: then a crop reads no more than its own box.

    Attributes:
        codes: `(C, *box)` integers, at `corner` of the volume.
        table: `(C, K)` float32: `table[c, v - first]` is the intensity of the integer v in channel c.
        first: the integer of the table's first column.
        affine: voxel of the volume to world mm (RAS+), `(D + 1, D + 1)` float64.
        name: of the file, for messages.
        corner: `(D,)`, voxel of the volume at which `codes` begin.
        size: `(D,)`, voxels of the volume along each axis.
        outside: `(C,)`, the integer of all voxels outside of the box.
        lowest: the lowest intensity of the volume.
    """

    codes: torch.Tensor
    table: torch.Tensor
    first: int
    affine: torch.Tensor
    name: str
    corner: tuple[int, ...]
    size: tuple[int, ...]
    outside: tuple[int, ...]
    lowest: float

    @property
    def shape(self) -> torch.Size:
        """Channels and voxels of the volume."""
        return torch.Size([len(self.codes), *self.size])

    @property
    def ndim(self) -> int:
        """Number of axes, with that of the channels."""
        return 1 + len(self.size)

    @property
    def pixdim(self) -> torch.Tensor:
        """Mm between voxels along each axis, `(D,)`."""
        return self.affine[:-1, :-1].norm(dim=0)

    @property
    def meta(self) -> dict[str, Any]:
        """As of a `MetaTensor`: the name of the file."""
        return {MetaKeys.AFFINE: self.affine, ImageMetaKey.FILENAME_OR_OBJ: self.name}

    def boxes(self, starts: Sequence[Sequence[int]], size: Sequence[int]) -> torch.Tensor:
        """Intensities `(N, C, *size)` float32 of boxes that begin at voxels `starts` `(N, D)`, within the volume."""
        found = torch.empty(len(starts), len(self.codes), *size)
        integers = self.codes.numpy()  # slices of it cost a fraction of a tensor's
        # a few boxes at a time, so that what lies between integers and intensities stays in the processor's cache
        step = max(1, CHUNK // math.prod(found.shape[1:]))
        for begin in range(0, len(starts), step):
            rows = found[begin : begin + step]
            codes = np.empty(rows.shape, integers.dtype)
            for box, start in zip(codes, starts[begin : begin + step]):
                self._read_box(integers, start, box)
            index = torch.from_numpy(codes).to(torch.int32)
            index = index.sub_(self.first) if self.first else index
            for c, table in enumerate(self.table):
                if len(self.table) == 1:
                    torch.index_select(table, 0, index.flatten(), out=rows.view(-1))
                else:
                    rows[:, c] = table.index_select(0, index[:, c].flatten()).view(rows[:, c].shape)
        return found

    def as_tensor(self) -> torch.Tensor:
        """Intensities of the whole volume, `(C, *spatial)` float32."""
        return self.boxes([[0] * len(self.size)], self.size)[0]

    def to_metatensor(self) -> MetaTensor:
        """The whole volume with its affine."""
        return MetaTensor(self.as_tensor(), meta=self.meta)

    def _read_box(self, integers: np.ndarray, start: Sequence[int], box: np.ndarray) -> None:
        """Fill `box` `(C, *size)` with the volume's integers from voxel `start` on."""
        begin = [a - c for a, c in zip(start, self.corner)]
        end = [b + n for b, n in zip(begin, box.shape[1:])]
        if min(begin) >= 0 and all(e <= h for e, h in zip(end, integers.shape[1:])):
            box[...] = integers[box_slices(begin, box.shape[1:])]
            return
        box[...] = np.reshape(self.outside, (-1, *[1] * len(begin)))
        first = [max(b, 0) for b in begin]
        last = [max(f, min(e, h)) for f, e, h in zip(first, end, integers.shape[1:])]
        overlap = [e - f for f, e in zip(first, last)]
        if min(overlap) > 0:
            box[box_slices([f - b for f, b in zip(first, begin)], overlap)] = integers[box_slices(first, overlap)]


Volume = MetaTensor | LookupVolume


def read_boxes(volume: Volume, starts: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Boxes `(N, C, *size)` of a volume, which begin at its voxels `starts` `(N, D)` and lie within it; a copy."""
    begins = starts.tolist()
    if isinstance(volume, LookupVolume):
        return volume.boxes(begins, size)
    values = volume.as_tensor()
    return torch.stack([values[box_slices(start, size)] for start in begins])


def box_slices(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """What cuts a box, all channels, from a volume `(C, *spatial)`."""
    return (slice(None), *[slice(a, a + n) for a, n in zip(start, size)])


def lowest_value(volume: Volume) -> float:
    """The lowest intensity of a volume."""
    return volume.lowest if isinstance(volume, LookupVolume) else float(volume.as_tensor().min())
