"""Linear probe of image labels: what a frozen encoder's mean token tells of an image, beside random encoders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.networks.utils import eval_mode
from monai.utils import convert_to_numpy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from anatomy_ssl.engines.embedding import load_encoders
from anatomy_ssl.metrics.probe import patient_folds
from anatomy_ssl.metrics.statistics import random_rows
from anatomy_ssl.metrics.tables import markdown_table, write_table

__all__ = ["LabelProbe"]

logger = logging.getLogger(__name__)

STRENGTHS = tuple(10.0**power for power in range(-5, 2))  # inverse regularisation


class Features(NamedTuple):
    """Of a split's images: mean tokens `(N, F)`, labels `(N, K)` with NaN for unknown, and patients `(N,)`."""

    values: np.ndarray
    labels: np.ndarray
    subject: np.ndarray


class LabelProbe:
    """Fits logistic regressions on the training patients' embeddings and reports the AUC of held-out patients.

    An image's embedding is the mean of the encoder's tokens, standardised. The strength of regularisation is chosen for
    each label by the AUC of patient-grouped folds within the training patients, those folds in which both classes are;
    held-out patients choose nothing.

    Args:
        encoder: images -> tokens `(N, F, *grid)` or vectors `(N, F)`; its own weights are not used.
        checkpoints: method -> file with its weights.
        random_encoders: freshly initialised encoders, at least one; rows beside the trained ones.
        train_loader: batches with `image`, `label` `(N, K)` (1, 0, or NaN where it is not known) and `subject`.
        test_loader: the same of held-out patients.
        labels: names of the K labels.
        output_dir: for `probe.csv` and `.md`.
        recipe: compared with the checkpoints' records.
        device: where encoders run.
        folds: within the training patients.
        seed: of the folds.

    Raises:
        ValueError: without random encoders, or where a label has one class only in a split or in every fold.
    """

    def __init__(
        self,
        encoder: nn.Module,
        checkpoints: Mapping[str, str],
        random_encoders: Sequence[nn.Module],
        train_loader: Iterable[dict[str, Any]],
        test_loader: Iterable[dict[str, Any]],
        labels: Sequence[str],
        output_dir: str,
        recipe: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        if not random_encoders:
            raise ValueError("random_encoders is empty: a result means nothing without the row of random encoders")
        self.encoders = load_encoders(encoder, checkpoints, recipe)
        self.random_encoders = list(random_encoders)
        self.loaders, self.labels = (train_loader, test_loader), list(labels)
        self.output_dir, self.device, self.folds, self.seed = Path(output_dir), device, folds, seed

    def run(self) -> list[dict[str, Any]]:
        """Write the table of AUCs; return its rows."""
        rows = [{"encoder": name, **self._probe(encoder)} for name, encoder in self.encoders.items()]
        random = [self._probe(encoder) for encoder in self.random_encoders]
        rows += random_rows("encoder", random)
        path = write_table(self.output_dir / "probe.csv", rows)
        logger.info("AUC of held-out patients, %s:\n%s", path, markdown_table(rows))
        return rows

    def _probe(self, encoder: nn.Module) -> dict[str, float]:
        train, test = (embed_images(encoder, loader, self.device) for loader in self.loaders)
        auc = {name: self._auc(train, test, column, name) for column, name in enumerate(self.labels)}
        return {"mean_auc": float(np.mean(list(auc.values()))), **auc}

    def _auc(self, train: Features, test: Features, column: int, name: str) -> float:
        known = [~np.isnan(part.labels[:, column]) for part in (train, test)]
        goals = [part.labels[rows, column].astype(int) for part, rows in zip((train, test), known)]
        for goal, split in zip(goals, ("training", "held-out")):
            if len(np.unique(goal)) < 2:
                raise ValueError(
                    f"label {name!r} has one value only in the {split} images: it has no AUC, leave it out"
                )
        folds = [
            fold
            for fold in patient_folds(train.subject[known[0]], goals[0], self.folds, self.seed)
            if all(len(np.unique(goals[0][rows])) == 2 for rows in fold)  # others have no AUC to choose by
        ]
        if not folds:
            raise ValueError(
                f"too few training patients have label {name!r}, or lack it, to choose a regularisation by "
                f"{self.folds} folds: leave it out"
            )
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        search = GridSearchCV(model, {"logisticregression__C": STRENGTHS}, scoring="roc_auc", cv=folds)
        fitted: Pipeline = search.fit(train.values[known[0]], goals[0]).best_estimator_
        return float(roc_auc_score(goals[1], fitted.decision_function(test.values[known[1]])))


def embed_images(encoder: nn.Module, loader: Iterable[dict[str, Any]], device: str | torch.device) -> Features:
    """Embed every image of a loader by the mean of its tokens, without gradients and in evaluation mode."""
    values, labels, subject = [], [], []
    encoder = encoder.to(device)
    with eval_mode(encoder):
        for batch in loader:
            z = encoder(torch.as_tensor(batch["image"]).to(device)).float()
            values.append((z.flatten(2).mean(dim=2) if z.ndim > 2 else z).cpu().numpy())
            labels.append(convert_to_numpy(batch["label"]))
            subject.append(np.asarray(batch["subject"]))
    return Features(*(np.concatenate(parts) for parts in (values, labels, subject)))
