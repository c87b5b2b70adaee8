"""What a classifier says of every image, and how well that tells them apart, as tables."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from anatomy_ssl.metrics.auc import auc_per_label, bootstrap_auc, probabilities
from anatomy_ssl.metrics.tables import markdown_table, write_csv

__all__ = ["ClassifierTables"]

logger = logging.getLogger(__name__)


class ClassifierTables:
    """Writes, when an evaluator in one process has seen all images,

    - `predictions.csv`: one row for each image, with its patient, the probability of each label, and the label itself
      where it is known (`true NAME`);
    - `auc.csv`: AUC of each label and their mean, with 95% bootstrap intervals over patients, and how many images have
      the label and lack it. The table goes to the log, too.

    The evaluator's batch holds `source` and `subject`, its output logits `(N, K)` as `pred` and labels as `label`.

    Args:
        names: K labels, in the order of the columns.
        output_dir: where the files go.
        exclusive: whether the labels are classes that exclude one another.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        names: Sequence[str],
        output_dir: str | os.PathLike[str],
        exclusive: bool = False,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.names, self.output_dir, self.exclusive = list(names), Path(output_dir), exclusive
        self.resamples, self.seed = resamples, seed
        self._forget()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self._forget())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.remember)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def _forget(self) -> None:
        self.images: list[tuple[str, str]] = []
        self.scores: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def remember(self, engine: Engine) -> None:
        """Keep a batch's answers."""
        batch, output = engine.state.batch, engine.state.output
        self.images += list(zip(map(str, batch["source"]), map(str, batch["subject"])))  # type: ignore[index, call-overload]
        self.scores += list(probabilities(torch.as_tensor(output["pred"]), self.exclusive).cpu().numpy())  # type: ignore[index, call-overload]
        self.labels += list(torch.as_tensor(output["label"]).cpu().numpy())  # type: ignore[index, call-overload]

    def write(self, engine: Engine) -> None:
        """Write both tables."""
        scores, labels = np.stack(self.scores).astype(float), np.stack(self.labels).astype(float)
        write_csv(self.output_dir / "predictions.csv", self._predictions(scores, labels))
        rows = self._auc(scores, labels)
        write_csv(self.output_dir / "auc.csv", rows)
        logger.info("%d images, %s:\n%s", len(scores), self.output_dir / "auc.csv", markdown_table(rows))

    def _predictions(self, scores: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        rows = []
        for (image, subject), score, label in zip(self.images, scores, labels):
            row: dict[str, Any] = {"image": image, "subject": subject}
            row.update({name: f"{value:.6g}" for name, value in zip(self.names, score)})
            row.update({f"true {n}": "" if np.isnan(v) else int(v) for n, v in zip(self.names, label)})
            rows.append(row)
        return rows

    def _auc(self, scores: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        values = auc_per_label(scores, labels)
        judged = values[~np.isnan(values)]
        means = [*values, judged.mean() if len(judged) else np.nan]
        subjects = [subject for _, subject in self.images]
        bounds = bootstrap_auc(scores, labels, subjects, self.resamples, self.seed)
        counts = [{"positive": int((column == 1).sum()), "negative": int((column == 0).sum())} for column in labels.T]
        return [
            {"label": name, "auc": float(value), "ci_low": float(low), "ci_high": float(high), **count}
            for name, value, (low, high), count in zip([*self.names, "mean"], means, bounds, [*counts, {}])
        ]
