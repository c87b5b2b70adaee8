"""Probes: what a linear head can read from frozen embeddings, in folds that keep each patient together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from torch import nn

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.data.table import read_table

Fold = tuple[np.ndarray, np.ndarray]


def patient_folds(subject: np.ndarray, y: np.ndarray, folds: int = 10, seed: int = 0) -> list[Fold]:
    """Training and test rows of each fold; every patient is in the test part of exactly one fold.

    The folds depend on nothing but the arguments, so methods that are probed on the same crops share them.

    Args:
        subject: `(N,)` the patient of each row.
        y: `(N,)` class of each row; patients are dealt out so that the folds' shares of the classes are alike.
        folds: number of folds.
        seed: of the dealing.

    Returns:
        `folds` pairs of row numbers (train, test).

    Raises:
        ValueError: there are fewer patients than folds.
    """
    patients = len(np.unique(subject))
    if folds < 2 or patients < folds:
        raise ValueError(f"{folds} folds need 2 or more folds and as many patients, got {patients} patients.")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer crops than folds; folds in which it is missing are named where it matters.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(splitter.split(np.zeros(len(y)), y, groups=subject))


def linear_probe(
    emb: Embeddings,
    target: np.ndarray,
    folds: int = 10,
    task: Literal["classification", "regression"] = "classification",
    seed: int = 0,
    epochs: int = 25,
    lr: float = 1e-3,
    batch_size: int = 8,
) -> dict[str, list[float]]:
    """Cross-validated linear probe of frozen embeddings, in the paper's protocol: Adam, fixed epochs, linear head.

    Source: Jabareen et al. 2024 (arXiv 2410.16947), crop-level lesion classification. Each fold has a fresh head and
    fresh metrics; embeddings and regression targets are standardised by the fold's training part; no epoch is chosen.

    Args:
        emb: crops of test patients.
        target: `(N,)`; classification: whether the crop holds the thing (0 or 1); regression: a size >= 0 such as the
            lesion volume in mm^3, of which log(1 + size) is predicted.
        folds: number of patient-grouped folds.
        task: classification or regression.
        seed: of the folds and of the order of the batches.
        epochs: passes over the training part. 25 are the paper's, who had thousands of crops; a step moves a weight by
            about `lr`, so with fewer than a thousand steps the head is far from converged: raise epochs.
        lr: Adam's learning rate.
        batch_size: crops per step.

    Returns:
        one value per fold. Classification: `auc`. Regression: `spearman`, `r2` and `mae`, of log(1 + size).
        A fold whose training or test part has one class, or one size, only gives NaN and a warning that names it.

    Raises:
        ValueError: fewer patients than folds, target of wrong length or range.
    """

    def fit_predict(train: np.ndarray, goal: torch.Tensor, test: np.ndarray, fold: int) -> np.ndarray:
        x = torch.from_numpy(StandardScaler().fit(emb.embedding[train]).transform(emb.embedding)).float()
        loss = nn.MSELoss() if task == "regression" else nn.BCEWithLogitsLoss()
        head = _fit_head(x[train], goal, loss, epochs, lr, batch_size, seed + fold)
        return head(x[test]).detach().squeeze(1).numpy()

    return cross_validate(emb.subject, target, fit_predict, folds, task, seed)


def cross_validate(
    subject: np.ndarray,
    target: np.ndarray,
    fit_predict: Callable[[np.ndarray, torch.Tensor, np.ndarray, int], np.ndarray],
    folds: int = 10,
    task: Literal["classification", "regression"] = "classification",
    seed: int = 0,
) -> dict[str, list[float]]:
    """Scores of any probe in patient-grouped folds, with fresh metrics in each.

    Args:
        subject: `(N,)` the patient of each crop.
        target: `(N,)` as `linear_probe` takes it.
        fit_predict: called with the training rows, their goals (float32; for regression standardised by the training
            part), the test rows and the number of the fold; returns the predictions `(n,)` for the test rows, logits or
            standardised sizes.
        folds: number of folds.
        task: classification or regression.
        seed: of the folds.

    Returns:
        as `linear_probe`.
    """
    y = _checked_target(len(subject), target, task)
    regression = task == "regression"
    scores: list[dict[str, float]] = []
    for k, (train, test) in enumerate(patient_folds(subject, (y > 0).astype(int), folds, seed)):
        defined = len(np.unique(y[train])) > 1 and len(np.unique(y[test])) > 1
        if not defined:
            fold = f"Fold {k} (patients {', '.join(np.unique(subject[test]))})"
            warnings.warn(f"{fold} has one {task} target only: its scores are NaN.", stacklevel=2)
        mean, sd = (y[train].mean(), y[train].std() or 1.0) if regression else (0.0, 1.0)
        goal = torch.from_numpy((y[train] - mean) / sd).float()
        prediction = fit_predict(train, goal, test, k).astype(np.float64) * sd + mean
        scores.append(_scores(y[test], prediction, regression, defined))
    return {name: [fold[name] for fold in scores] for name in scores[0]}


def probe_rows(method: str, scores: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The scores of `linear_probe` as rows method, fold, metric, value, the form in which probes are stored."""
    return [
        {"method": method, "fold": fold, "metric": metric, "value": value}
        for metric, values in scores.items()
        for fold, value in enumerate(values)
    ]


def read_probe(paths: Sequence[str | os.PathLike[str]], metric: str = "auc") -> dict[str, list[float]]:
    """One metric's values per fold for each method in CSV files of `probe_rows`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a column or the metric is missing, a fold is there twice, or methods have different folds.
    """
    values: dict[str, dict[int, float]] = {}
    for path in paths:
        for row in read_table(path, ("method", "fold", "metric", "value")):
            if row["metric"] == metric:
                folds = values.setdefault(row["method"], {})
                if int(row["fold"]) in folds:
                    raise ValueError(f"{path} repeats fold {row['fold']} of {row['method']}: name each method once.")
                folds[int(row["fold"])] = float(row["value"])
    if not values:
        raise ValueError(f"There is no {metric} in {', '.join(map(str, paths))}.")
    if len({tuple(sorted(folds)) for folds in values.values()}) > 1:
        raise ValueError(
            f"The methods {', '.join(values)} have different folds: probe them with the same number of folds."
        )
    return {method: [folds[fold] for fold in sorted(folds)] for method, folds in values.items()}


def _checked_target(rows: int, target: np.ndarray, task: str) -> np.ndarray:
    """The target as float64 `(N,)`, for regression log(1 + size)."""
    y = np.asarray(target, dtype=np.float64)
    if task not in ("classification", "regression"):
        raise ValueError(f"task must be classification or regression, got {task}.")
    if y.shape != (rows,):
        raise ValueError(f"The probe's target must be ({rows},), one value per crop, got {y.shape}.")
    if task == "classification" and not np.isin(y, (0, 1)).all():
        raise ValueError(
            "The probe's classification target must be 0 or 1: threshold sizes first, for instance volume > 0."
        )
    if not np.isfinite(y).all() or y.min() < 0:
        raise ValueError(
            "The probe's regression target must be finite and not negative: it is a size such as a volume."
        )
    return y if task == "classification" else np.log1p(y)


def _fit_head(
    x: torch.Tensor, y: torch.Tensor, loss: nn.Module, epochs: int, lr: float, batch_size: int, seed: int
) -> nn.Linear:
    """A linear head `(N, F)` to `(N, 1)`, trained from zero, as the problem is convex; only batches are random."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.utils.skip_init(nn.Linear, x.shape[1], 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss(head(x[rows]).squeeze(1), y[rows]).backward()
            optimizer.step()
    return head


def _scores(y: np.ndarray, prediction: np.ndarray, regression: bool, defined: bool) -> dict[str, float]:
    """The metrics of one fold; NaN where the fold cannot tell."""
    if not regression:
        return {"auc": float(roc_auc_score(y, prediction)) if defined else float("nan")}
    if not defined:
        return {name: float("nan") for name in ("spearman", "r2", "mae")}
    return {
        "spearman": float(spearmanr(y, prediction).statistic),
        "r2": float(r2_score(y, prediction)),
        "mae": float(mean_absolute_error(y, prediction)),
    }
