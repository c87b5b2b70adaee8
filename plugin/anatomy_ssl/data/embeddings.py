"""Embeddings of crops, with where in which patient each crop was taken: the table that every evaluation reads."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from monai.utils import convert_to_numpy

from anatomy_ssl.data.atomic import atomic_write

_EXTRA = "extra/"
_FIELDS = ("embedding", "position", "subject", "image", "origin")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """One row per crop. Arrays and tensors are taken, NumPy arrays are kept.

    Args:
        embedding: `(N, F)` float32, finite.
        position: `(N, D)` crop centres in world millimetres, RAS+, float32; D is 3, or 2 for radiographs.
        subject: `(N,)` the patient of each crop, kept as text.
        image: `(N,)` source file of each crop, kept as text; a single name holds for all rows.
        origin: `(N, D)` millimetres, the reference point of the crop's patient in the same frame as `position` (for
            instance the centroid of the brainstem); zeros where none is given, one `(D,)` point holds for all rows.
        extra: further values per crop, each `(N, ...)`, for instance `lesion_volume_mm3`.

    Raises:
        ValueError: a shape does not fit, or an embedding, position or origin is not finite; names the field.
    """

    embedding: np.ndarray
    position: np.ndarray
    subject: np.ndarray
    image: np.ndarray = field(default_factory=lambda: np.array([""]))
    origin: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        embedding = convert_to_numpy(self.embedding, dtype=np.float32, wrap_sequence=True)
        position = convert_to_numpy(self.position, dtype=np.float32, wrap_sequence=True)
        if embedding.ndim != 2:
            raise ValueError(f"embedding must be (N, F), got {embedding.shape}.")
        if position.ndim != 2 or position.shape[1] not in (2, 3) or len(position) != len(embedding):
            raise ValueError(f"position must be ({len(embedding)}, 2 or 3), got {position.shape}.")
        arrays = {
            "embedding": embedding,
            "position": position,
            "subject": _text(self.subject),
            "image": _filled("image", _text(self.image), position.shape[:1]),
            "origin": _filled("origin", np.asarray(convert_to_numpy(self.origin), np.float32), position.shape),
        }
        extra = {name: np.asarray(convert_to_numpy(values)) for name, values in self.extra.items()}
        for name, values in {"subject": arrays["subject"], **extra}.items():
            if values.ndim == 0 or len(values) != len(position):
                raise ValueError(f"{name} must have {len(position)} rows as embedding has, got shape {values.shape}.")
            if values.dtype == object:
                raise ValueError(f"{name} holds Python objects: give numbers or text, which need no pickle.")
        for name in ("embedding", "position", "origin"):
            finite = np.isfinite(arrays[name]).all(axis=1)
            if not finite.all():
                row = int(np.argmin(finite))
                raise ValueError(f"{name} is not finite in row {row} (subject {arrays['subject'][row]}).")
        for name, values in {**arrays, "extra": extra}.items():
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        """Number of crops N."""
        return len(self.embedding)

    @property
    def anatomical_position(self) -> np.ndarray:
        """`(N, D)` millimetres from the patient's reference point: the frame in which patients are compared.

        Where no origin was given this is the scanner's frame, and comparing patients is as good as that frame is.
        """
        return self.position - self.origin

    @property
    def scan(self) -> np.ndarray:
        """`(N,)` what shares a frame: each image of each subject."""
        return np.char.add(np.char.add(self.subject, "\n"), self.image)

    def select(self, rows: np.ndarray) -> Embeddings:
        """The given rows only.

        Args:
            rows: boolean mask `(N,)` or row numbers.
        """
        chosen = {name: getattr(self, name)[rows] for name in _FIELDS}
        return Embeddings(**chosen, extra={name: values[rows] for name, values in self.extra.items()})

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        """All rows of several tables, in order.

        Raises:
            ValueError: there is no table, or they differ in feature size, dimensions or names of `extra`.
        """
        if not parts:
            raise ValueError("There are no embeddings to concatenate.")
        shapes = {(part.embedding.shape[1], part.position.shape[1], tuple(sorted(part.extra))) for part in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"Embeddings of different (features, dimensions, extra) cannot be joined: {sorted(shapes)}."
            )
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS}
        extra = {name: np.concatenate([part.extra[name] for part in parts]) for name in parts[0].extra}
        return Embeddings(**joined, extra=extra)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a compressed npz without pickles; an older file is replaced only once the new one is whole."""
        arrays = {name: getattr(self, name) for name in _FIELDS}
        arrays.update({_EXTRA + name: values for name, values in self.extra.items()})
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Embeddings:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, is no npz, holds pickled objects, or lacks an array; names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no embeddings file at {path}.")
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not a whole npz file: write the embeddings again.")
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _FIELDS if name not in file.files]
            if missing:
                raise ValueError(f"{path} lacks the array {', '.join(missing)}: it was not written by Embeddings.save.")
            try:
                arrays = {name: file[name] for name in file.files}
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path} cannot be read ({error}): write the embeddings again.") from error
        extra = {name[len(_EXTRA) :]: values for name, values in arrays.items() if name.startswith(_EXTRA)}
        return Embeddings(**{name: arrays[name] for name in _FIELDS}, extra=extra)

    def to_csv(self, path: str | os.PathLike[str], embedding: bool = True) -> Path:
        """Write one row per crop: subject, image, x, y, z, origin_x ..., `extra` (arrays as name_0 ...), e0 ... eF-1.

        Args:
            path: file to write; replaced only once it is whole.
            embedding: with the embedding's columns e0 ... eF-1.
        """
        columns: dict[str, np.ndarray] = {"subject": self.subject, "image": self.image}
        axes = "xyz"[: self.position.shape[1]]
        columns.update({axis: self.position[:, k] for k, axis in enumerate(axes)})
        columns.update({f"origin_{axis}": self.origin[:, k] for k, axis in enumerate(axes)})
        for name, values in self.extra.items():
            if values.ndim == 1:
                columns[name] = values
            else:
                columns.update({f"{name}_{k}": column for k, column in enumerate(values.reshape(len(self), -1).T)})
        if embedding:
            columns.update({f"e{k}": column for k, column in enumerate(self.embedding.T)})
        with atomic_write(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))
            text.detach()  # writes what is left and leaves the file open
        return Path(path)


def _text(values: np.ndarray) -> np.ndarray:
    """The values as a one-dimensional text array, which needs no pickle to be stored."""
    return np.atleast_1d(np.asarray(convert_to_numpy(values), dtype=str))


def _filled(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values, one for all rows or one per row, as an array of the full shape."""
    try:
        return np.array(np.broadcast_to(values, shape))
    except ValueError as error:
        raise ValueError(f"{name} must be {shape} or hold for all rows, got {values.shape}.") from error
