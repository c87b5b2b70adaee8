"""Dense tokens of whole images: what an encoder of cells says of every place, and where that place is."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices, to_affine_nd
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from monai.utils import ensure_tuple_rep
from tqdm import tqdm

from anatomy_ssl.data.tokens import TokenMap

__all__ = ["TokenExtraction", "TokenInferer"]

logger = logging.getLogger(__name__)


class TokenInferer(Inferer):
    """Tokens of a whole image from windows of the size that the encoder was trained with.

    Windows start at whole cells, half a window apart, so that every cell of the image is one of the encoder's; tokens
    of cells that several windows show are averaged, those in the middle of a window with more weight. (MONAI's
    sliding windows round the places of outputs that are smaller than the window, wrongly for some cell sizes.)

    Args:
        grid_size: cells of a window along each axis; smaller images are one window.
        cell_size: voxels of a cell along each axis; images must be multiples of it.
        batch_size: windows in the network at once.
        shifts: the image is also encoded moved by parts of a cell, this many along each axis, and the tokens are
            interleaved: `shifts` tokens a cell, at `shifts ** D` times the cost. Must divide `cell_size`.

    A call takes an image `(1, C, *spatial)` and gives `(1, F, *grid)`; with `shifts` the grid has
    `(cells - 1) * shifts + 1` tokens along each axis.
    """

    def __init__(
        self, grid_size: Sequence[int], cell_size: Sequence[int] | int, batch_size: int = 16, shifts: int = 1
    ) -> None:
        super().__init__()
        self.grid_size = tuple(int(n) for n in grid_size)
        self.cell_size: tuple[int, ...] = tuple(ensure_tuple_rep(cell_size, len(self.grid_size)))
        self.batch_size, self.shifts = batch_size, shifts
        if min(*self.grid_size, *self.cell_size, batch_size, shifts) < 1 or any(c % shifts for c in self.cell_size):
            raise ValueError(
                f"grid_size {self.grid_size}, cell_size {self.cell_size}, batch_size {batch_size} and shifts {shifts} "
                "must be positive, and shifts must divide cell_size"
            )

    def affine(self) -> np.ndarray:
        """`(D + 1, D + 1)` from the index of a token to the voxel at its centre."""
        cell = np.array([*self.cell_size, 1.0])
        affine = np.diag([*cell[:-1] / self.shifts, 1.0])
        affine[:-1, -1] = (cell[:-1] - 1) / 2
        return affine

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Encode one image.

        Raises:
            ValueError: for several images, or one that does not consist of cells.
        """
        x = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        if len(x) != 1 or any(n % c for n, c in zip(x.shape[2:], self.cell_size)) or x.ndim != len(self.grid_size) + 2:
            raise ValueError(f"one image of whole cells of {self.cell_size} voxels is needed, got {tuple(x.shape)}")

        def encode(crops: torch.Tensor) -> torch.Tensor:
            return network(crops, *args, **kwargs)

        if self.shifts == 1:
            return self._tokens(x, encode)
        moves = list(itertools.product(range(self.shifts), repeat=len(self.cell_size)))
        parts = [self._tokens(self._moved(x, move), encode) for move in moves]
        dense = parts[0].new_empty(*parts[0].shape[:2], *[n * self.shifts for n in parts[0].shape[2:]])
        for move, part in zip(moves, parts):
            dense[_box(slice(m, None, self.shifts) for m in move)] = part
        # the last cells of moved images reach over the edge
        return dense[_box(slice(1 - self.shifts) for _ in self.cell_size)]

    def _moved(self, x: torch.Tensor, move: Sequence[int]) -> torch.Tensor:
        """The image from `move` parts of a cell on, its border repeated at the end."""
        start = [m * c // self.shifts for m, c in zip(move, self.cell_size)]
        padding = [side for s in reversed(start) for side in (0, s)]
        return F.pad(x, padding, mode="replicate")[_box(slice(s, None) for s in start)]

    def _tokens(self, x: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Tokens `(1, F, *grid)` of an image, one for each cell."""
        grid = tuple(n // c for n, c in zip(x.shape[2:], self.cell_size))
        window = tuple(min(n, g) for n, g in zip(self.grid_size, grid))
        weight = compute_importance_map(window, mode="gaussian", sigma_scale=0.25, device=x.device)
        places = dense_patch_slices(grid, window, tuple(max(1, n // 2) for n in window))
        total, count = None, torch.zeros(grid, device=x.device)
        for begin in range(0, len(places), self.batch_size):
            part = places[begin : begin + self.batch_size]
            voxels = [[slice(s.start * c, s.stop * c) for s, c in zip(p, self.cell_size)] for p in part]
            tokens = encode(torch.cat([x[_box(box)] for box in voxels])).float()
            total = x.new_zeros(tokens.shape[1], *grid) if total is None else total
            for place, values in zip(part, tokens):
                total[_box(place)] += values * weight
                count[tuple(place)] += weight
        assert total is not None
        return (total / count)[None]


class TokenExtraction:
    """Encodes every image of a loader; writes one npz for each (`TokenMap.save`).

    Args:
        network: the encoder, `(N, C, *spatial)` -> `(N, F, *grid)`.
        data_loader: gives lists of one item with `image` (a MetaTensor, prepared), `original_size`, `pixel_to_mm` (see
            `PixelFramed`), `subject` and `source`.
        inferer: how an image becomes tokens.
        output_dir: where the files go.
        device: where the encoder runs.
        dtype: of the tokens in the files, float16 or float32.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        data_loader: Iterable[Sequence[dict[str, Any]]],
        inferer: TokenInferer,
        output_dir: str,
        device: str | torch.device = "cpu",
        dtype: str = "float16",
    ) -> None:
        if dtype not in ("float16", "float32"):
            raise ValueError(f"dtype is float16 or float32, not {dtype!r}")
        self.network, self.data_loader, self.inferer = network, data_loader, inferer
        self.output_dir, self.device, self.dtype = Path(output_dir), device, dtype

    def run(self) -> list[Path]:
        """Write `SUBJECT.npz`, from a patient's second image on `SUBJECT_NUMBER_IMAGE.npz`; returns the paths."""
        written: list[Path] = []
        for tokens in self.maps():
            path = self.output_dir / f"{_file_name(tokens.subject)}.npz"
            if path in written:
                name = Path(tokens.source).name.split(".")[0]
                path = self.output_dir / f"{_file_name(tokens.subject)}_{len(written)}_{_file_name(name)}.npz"
            written.append(tokens.save(path))
        logger.info("wrote the tokens of %d images to %s", len(written), self.output_dir)
        return written

    def maps(self) -> Iterator[TokenMap]:
        """The tokens of each image in turn."""
        for (item,) in tqdm(self.data_loader, "tokens", disable=None):
            yield encode_item(item, self.network, self.inferer, self.device, self.dtype)


def encode_item(
    item: Mapping[str, Any], network: torch.nn.Module, inferer: TokenInferer, device: str | torch.device, dtype: str
) -> TokenMap:
    """The tokens of one prepared item, see `TokenExtraction`."""
    network = network.to(device)
    with eval_mode(network):
        tokens = inferer(torch.as_tensor(item["image"])[None].to(device), network)[0]
    pixel_to_mm = item["pixel_to_mm"].numpy().astype(float)
    dims = len(pixel_to_mm) - 1
    affine = to_affine_nd(dims, item["image"].affine).numpy() @ inferer.affine()
    if dims == 3:  # a volume's affine leads to the world
        affine = np.linalg.inv(pixel_to_mm) @ affine
    known = np.isfinite(pixel_to_mm).all()
    return TokenMap(
        tokens.cpu().numpy().astype(dtype),
        affine,
        item["original_size"].numpy(),
        np.abs(affine[:dims, :dims]).sum(axis=1) * inferer.shifts,
        str(item["subject"]),
        str(item["source"]),
        pixel_to_mm if known else None,
    )


def _box(slices: Iterable[slice]) -> Any:
    """An index of the last axes."""
    return (..., *slices)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
