"""Area under the ROC curve of several findings, of which some are not known for some images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from sklearn.metrics import roc_auc_score

from anatomy_ssl.losses.gather import all_gather_rows

__all__ = ["MultiLabelAUC", "auc_per_label", "bootstrap_auc", "probabilities"]

logger = logging.getLogger(__name__)


def probabilities(logits: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Of labels, from logits `(N, K)`: a sigmoid for each, or a softmax over classes that exclude one another."""
    return logits.float().softmax(dim=1) if exclusive else logits.float().sigmoid()


def auc_per_label(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUC of each label over the images for which it is known.

    Args:
        scores: `(N, K)`.
        labels: `(N, K)` of 0 and 1, NaN where not known.

    Returns:
        `(K,)`, NaN where no image or every image has the label.
    """
    values = []
    for score, label in zip(np.asarray(scores).T, np.asarray(labels).T):
        known = ~np.isnan(label)
        both = len(np.unique(label[known])) == 2
        values.append(float(roc_auc_score(label[known], score[known])) if both else math.nan)
    return np.array(values)


def bootstrap_auc(
    scores: np.ndarray,
    labels: np.ndarray,
    subjects: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> np.ndarray:
    """Percentile intervals of each label's AUC and of their mean, by drawing patients with replacement.

    All images of a patient are drawn together, since they are no independent ones. Resamples in which a label is
    undefined are left out for it, and the label out of their mean.

    Args:
        scores: `(N, K)`.
        labels: `(N, K)` of 0 and 1, NaN where not known.
        subjects: N names of patients.
        resamples: how many, at least 2.
        seed: of the draws.
        confidence: share of the resamples within the interval.

    Returns:
        `(K + 1, 2)`, lower and upper bound; the last row is the mean's. NaN where undefined.

    Raises:
        ValueError: on other lengths, or too few resamples.
    """
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    if scores.shape != labels.shape or len(subjects) != len(scores):
        raise ValueError(
            f"scores {scores.shape}, labels {labels.shape} and {len(subjects)} subjects have to be of the same images"
        )
    if resamples < 2:
        raise ValueError(f"a bootstrap needs at least 2 resamples, not {resamples}")
    names, patient = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    ranked = [_ranked(score, label) for score, label in zip(scores.T, labels.T)]
    values = np.array([[_weighted_auc(each, draw[patient]) for each in ranked] for draw in draws])  # (B, K)
    with np.errstate(invalid="ignore"):
        means = np.array([np.mean(row[~np.isnan(row)]) if not np.isnan(row).all() else math.nan for row in values])
    tail = 50 * (1 - confidence)
    bounds = np.full((labels.shape[1] + 1, 2), math.nan)
    for row, column in enumerate([*values.T, means]):
        defined = column[~np.isnan(column)]
        if len(defined):
            bounds[row] = np.percentile(defined, [tail, 100 - tail])
    return bounds


def _ranked(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images with a known label in the order of their scores, their labels, and where each run of equal scores starts.

    Sorted once for all resamples, which scikit-learn would do for each.
    """
    order = np.argsort(score, kind="stable")
    order = order[~np.isnan(label[order])]
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    return order, label[order], starts


def _weighted_auc(ranked: tuple[np.ndarray, np.ndarray, np.ndarray], weight: np.ndarray) -> float:
    """AUC where image i counts `weight[i]` times: the share of pairs in the right order, ties half."""
    order, label, starts = ranked
    if not len(order):
        return math.nan
    weight = weight[order].astype(float)
    positive, negative = (np.add.reduceat(part, starts) for part in (weight * label, weight * (1 - label)))
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else math.nan


class MultiLabelAUC(Metric):
    """Mean AUC over the labels, and each label's own, of the known labels of all processes.

    A label that all images or none have is left out of the mean and named in the log once. The mean stands in the
    engine's metrics under the name that the metric is attached by, the labels' own under theirs.

    Args:
        names: K labels, in the order of the columns.
        exclusive: whether the labels are classes that exclude one another, see `probabilities`.
        output_transform: gives logits and labels, both `(N, K)`, labels 0, 1 or NaN.
    """

    def __init__(
        self,
        names: Sequence[str],
        exclusive: bool = False,
        output_transform: Callable[..., Any] = lambda output: (output["pred"], output["label"]),
        **kwargs: Any,
    ) -> None:
        self.names, self.exclusive = list(names), exclusive
        self.undefined: set[str] = set()
        super().__init__(output_transform=output_transform, **kwargs)

    def reset(self) -> None:
        """Forget the images of before."""
        self.rows: list[torch.Tensor] = []

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Add a batch."""
        logits, labels = (part.detach() for part in output)
        if labels.shape != logits.shape or logits.shape[1] != len(self.names):
            raise ValueError(
                f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not belong to {len(self.names)} "
                f"names ({', '.join(self.names)})"
            )
        self.rows.append(torch.stack([probabilities(logits, self.exclusive), labels.float()], dim=2).cpu())

    def compute(self) -> list[float]:
        """AUC of each label."""
        # a process may have had no image, which MONAI's Cumulative would wait for
        own = torch.cat([torch.zeros(0, len(self.names), 2), *self.rows]).to(idist.device())
        scores, labels = all_gather_rows(own).cpu().double().unbind(dim=2)
        return auc_per_label(scores.numpy(), labels.numpy()).tolist()

    def completed(self, engine: Engine, name: str) -> None:
        """Note the mean and the labels' own values."""
        values = self.compute()
        for label, value in zip(self.names, values):
            if math.isnan(value) and label not in self.undefined:
                self.undefined.add(label)
                logger.warning("all images or none have %s: it has no AUC and is left out of the mean", label)
        judged = [value for value in values if not math.isnan(value)]
        engine.state.metrics[name] = float(np.mean(judged)) if judged else math.nan
        engine.state.metrics.update(zip(self.names, values))
