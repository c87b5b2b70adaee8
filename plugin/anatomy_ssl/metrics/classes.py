"""Metrics of a classifier of several classes, of which a validation set may lack some."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

import numpy as np
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler
from monai.metrics import AveragePrecisionMetric, ROCAUCMetric

logger = logging.getLogger(__name__)


class ClassMean(IgniteMetricHandler):
    """Mean of a metric over the classes that can be judged: those that some samples have and some lack.

    The mean of MONAI's handlers `ROCAUC` and `AveragePrecision` is not a number as soon as one class cannot be, so that
    a few validation patients without one of the classes could choose no network. It is of the samples of all processes.

    Args:
        metric_fn: MONAI's metric, whatever its `average`.
        output_transform: gives predictions and labels, both `(N, K)` for K classes, labels 0 or 1.
        classes: their names, in the order of the columns: each one's value then stands in the engine's metrics, too,
            under its name, NaN where it cannot be judged. None notes the mean alone.
    """

    def __init__(
        self,
        metric_fn: ROCAUCMetric | AveragePrecisionMetric,
        output_transform: Callable = lambda x: x,
        classes: Iterable[str] | None = None,
    ) -> None:
        super().__init__(metric_fn=metric_fn, output_transform=output_transform, save_details=False)
        self.classes = list(classes or ())
        self.values: list[float] = []

    def compute(self) -> float:
        """The mean, NaN if no class can be judged."""
        self.values = np.atleast_1d(self.metric_fn.aggregate("none")).astype(float).tolist()
        self._is_reduced = True
        judged = [value for value in self.values if not math.isnan(value)]
        return float(np.mean(judged)) if judged else math.nan

    def completed(self, engine: Engine, name: str) -> None:
        """Note the mean, and the classes that have names."""
        super().completed(engine, name)
        for label, value in zip(self.classes, self.values):
            engine.state.metrics[label] = value
            if math.isnan(value):
                logger.warning("all samples or none have %s: no %s can be computed for it", label, name)
