"""Tokens of one image, with where in the image each of them lies."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from anatomy_ssl.data.atomic import atomic_write

__all__ = ["TokenMap"]

_ARRAYS = ("tokens", "affine", "pixel_to_mm", "image_size", "cell_size", "subject", "source")


@dataclass(frozen=True, eq=False)
class TokenMap:
    """The tokens of one image. Pixels are those of the file: (row, column) from the first one's centre, or voxels.

    Args:
        tokens: `(F, *grid)` float.
        affine: `(D + 1, D + 1)` from grid index to the original image's pixels.
        image_size: `(D,)` pixels of the original image.
        cell_size: `(D,)` pixels of the original image that a token stands for.
        subject: the patient.
        source: the file.
        pixel_to_mm: `(D + 1, D + 1)` from pixels to mm: for volumes world mm (RAS+), for radiographs mm from the first
            pixel's centre along rows and columns. None where the file does not tell.
    """

    tokens: np.ndarray
    affine: np.ndarray
    image_size: np.ndarray
    cell_size: np.ndarray
    subject: str
    source: str
    pixel_to_mm: np.ndarray | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return self.tokens.shape[1:]

    @property
    def position(self) -> np.ndarray:
        """`(*grid, D)` float32: centre of each token in pixels."""
        index = np.moveaxis(np.indices(self.grid), 0, -1)
        return apply_affine(self.affine, index).astype(np.float32)

    def index_of(self, pixels: np.ndarray) -> np.ndarray:
        """Fractional grid index `(N, D)` of pixels `(N, D)`.

        Raises:
            ValueError: a point lies outside of the image.
        """
        points = np.asarray(pixels, dtype=float).reshape(-1, len(self.image_size))
        outside = ((points < -0.5) | (points > self.image_size - 0.5)).any(axis=1)
        if outside.any():
            point = ", ".join(f"{value:g}" for value in points[outside][0])
            size = " x ".join(str(int(n)) for n in self.image_size)
            raise ValueError(
                f"{self.source}: the point ({point}) lies outside of the image of {size} pixels; give points as "
                "(row, column) from 0"
            )
        return apply_affine(np.linalg.inv(self.affine), points)

    def to_mm(self, pixels: np.ndarray) -> np.ndarray | None:
        """Millimetres `(..., D)` of pixels `(..., D)`; None where the file does not tell."""
        return None if self.pixel_to_mm is None else apply_affine(self.pixel_to_mm, pixels)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an npz without pickles, whole or not at all.

        Besides the arguments (`pixel_to_mm` NaN where unknown) it holds `position` and `position_mm`, `(*grid, D)`.
        """
        dims = len(self.image_size)
        position = self.position
        mm = self.to_mm(position)
        unknown = np.full((dims + 1, dims + 1), np.nan)
        arrays = {
            "tokens": self.tokens,
            "position": position,
            "position_mm": np.full_like(position, np.nan) if mm is None else mm.astype(np.float32),
            "affine": self.affine,
            "pixel_to_mm": unknown if self.pixel_to_mm is None else self.pixel_to_mm,
            "image_size": np.asarray(self.image_size),
            "cell_size": np.asarray(self.cell_size),
            "subject": np.array(self.subject),
            "source": np.array(self.source),
        }
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> TokenMap:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds something else; names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There are no tokens at {path}.")
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not a whole npz file: write the tokens again.")
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _ARRAYS if name not in file.files]
            if missing:
                raise ValueError(f"{path} lacks the array {', '.join(missing)}: it was not written by tokens.yaml.")
            try:
                arrays = {name: file[name] for name in _ARRAYS}
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path} cannot be read ({error}): write the tokens again.") from error
        known = np.isfinite(arrays["pixel_to_mm"]).all()
        return TokenMap(
            arrays["tokens"],
            arrays["affine"],
            arrays["image_size"],
            arrays["cell_size"],
            str(arrays["subject"]),
            str(arrays["source"]),
            arrays["pixel_to_mm"] if known else None,
        )
