"""Writes what a classifier found: one row per image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import ImageMetaKey

from anatomy_ssl.data.atomic import atomic_write

__all__ = ["SaveProbabilities"]


class SaveProbabilities:
    """Writes a table with the path of each image and the probability of each class, when an evaluator has ended.

    MONAI's `ClassificationSaver` has no header that names the classes.

    Args:
        path: a file that ends in .csv, or in .json: a list of `{"image": path, CLASS: probability, ...}`.
        names: of the classes, K.

    The evaluator's output holds `probability` `(K,)` and the `image` with its metadata, for each image.

    Raises:
        ValueError: for another ending.
    """

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self.path, self.names = Path(path), list(names)
        if self.path.suffix not in (".csv", ".json"):
            raise ValueError(f"{path} ends neither in .csv nor in .json: name the table's file so")
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def collect(self, engine: Engine) -> None:
        """Keep the rows of a batch."""
        output: Any = engine.state.output
        for item in output:
            path = str(item["image"].meta[ImageMetaKey.FILENAME_OR_OBJ])
            self.rows.append({"image": path, **dict(zip(self.names, item["probability"].tolist()))})

    def write(self, engine: Engine) -> None:
        """Write the table."""
        if self.path.suffix == ".json":
            text = json.dumps(self.rows, indent=1) + "\n"
        else:
            stream = io.StringIO(newline="")
            writer = csv.DictWriter(stream, ["image", *self.names], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            text = stream.getvalue()
        with atomic_write(self.path) as file:
            file.write(text.encode())
