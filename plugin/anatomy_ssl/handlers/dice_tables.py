"""How well every organ of every patient is found, as a table for people and for programs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from anatomy_ssl.metrics.tables import markdown_table, write_table

__all__ = ["DiceTable"]

logger = logging.getLogger(__name__)


class DiceTable:
    """Writes `dice.csv` and `dice.md` when an evaluator in one process has seen all scans.

    One row for each scan, in the order of the evaluation, with its `subject`, the Dice of each class, empty where the
    scan's label map lacks it, and their mean; then the mean and the standard deviation over scans. The last two go to
    the log, too. The evaluator's metric `metric` keeps its details, `(scans, K)`, as MONAI's `MeanDice` does; its batch
    holds `source` and, where known, `subject`.

    Args:
        classes: K names, in the order of the columns.
        output_dir: where the files go.
        metric: name of the evaluator's metric.
    """

    def __init__(self, classes: Sequence[str], output_dir: str | os.PathLike[str], metric: str = "mean_dice") -> None:
        self.classes, self.output_dir, self.metric = list(classes), Path(output_dir), metric
        self.scans: list[dict[str, str]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.scans.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.remember)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def remember(self, engine: Engine) -> None:
        """Note which scans a batch held, decollated or not."""
        batch: Any = engine.state.batch
        items = batch if isinstance(batch, list) else [dict(zip(batch, column)) for column in zip(*batch.values())]
        self.scans += [{"subject": str(i.get("subject", "")), "image": str(i["source"])} for i in items]

    def write(self, engine: Engine) -> None:
        """Write the table."""
        state: Any = engine.state
        found = torch.as_tensor(state.metric_details[self.metric]).cpu().double().numpy()  # (scans, K)
        values = np.column_stack([found, [_over_known(np.mean, scan) for scan in found]])
        names = [*self.classes, "mean"]
        rows = [{**scan, **_cells(names, row)} for scan, row in zip(self.scans, values)]
        summary = [
            {"subject": name, **_cells(names, [_over_known(function, column) for column in values.T])}
            for name, function in (("mean", np.mean), ("sd", _sd))
        ]
        path = write_table(self.output_dir / "dice.csv", [*rows, *summary])
        logger.info("Dice of %d scans, %s:\n%s", len(rows), path, markdown_table(summary))


def _cells(names: Sequence[str], values: Iterable[float]) -> dict[str, float | None]:
    """A row; an empty cell for what is not defined."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values)}


def _over_known(function: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    """Of the values that are defined; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(function(known)) if len(known) else np.nan


def _sd(values: np.ndarray) -> float:
    """Of a sample; not defined for a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan
