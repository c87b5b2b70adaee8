"""How well embeddings tell where in the body a crop was taken: rank correlation of distances, and position regression.

Always read these numbers beside those of a random encoder: untrained networks reach an R2 of 0.3 to 0.4.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.metrics.collapse import rankme

MAX_PAIRS = 200_000
_ALPHAS = tuple(10.0**power for power in range(-2, 5))


def subject_pairs(
    subject: np.ndarray, across: bool = False, max_pairs: int = MAX_PAIRS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows of one subject, or of different subjects, each pair once.

    Args:
        subject: `(N,)` the patient of each row.
        across: pairs of different subjects instead of pairs of one subject.
        max_pairs: where there are more pairs, this many are drawn from all of them, uniformly and without repetition.
        seed: of that draw.

    Returns:
        row numbers `i` and `j`, each `(P,)`.
    """
    order = np.argsort(subject, kind="stable")
    code = np.unique(subject[order], return_inverse=True)[1]
    rows = np.arange(len(order))
    end = np.searchsorted(code, code, side="right")  # the first row after those of the same subject
    first, last = (end, np.full_like(end, len(order))) if across else (rows + 1, end)  # partners of a row
    count = last - first
    stop = np.cumsum(count)
    total = int(count.sum())
    if total <= max_pairs:
        pair = np.arange(total)
    else:
        pair = np.sort(np.random.default_rng(seed).choice(total, max_pairs, replace=False, shuffle=False))
    i = np.searchsorted(stop, pair, side="right")
    j = last[i] - (stop[i] - pair)
    return order[i], order[j]


def pair_distances(x: np.ndarray, i: np.ndarray, j: np.ndarray, chunk: int = 4096) -> np.ndarray:
    """Euclidean distances between the rows `i` and `j` of `x` `(N, F)`: `(P,)`, in chunks to bound memory."""
    parts = [np.linalg.norm(x[i[k : k + chunk]] - x[j[k : k + chunk]], axis=1) for k in range(0, len(i), chunk)]
    return np.concatenate(parts) if parts else np.zeros(0)


def rho_per_subject(emb: Embeddings, max_pairs: int = MAX_PAIRS, seed: int = 0) -> dict[str, float]:
    """Spearman's rho between latent and physical distances (mm) over the pairs of crops of each subject.

    Subjects with fewer than 3 crops are left out. NaN where all distances of a subject are equal (collapse).
    """
    rho = {}
    for name in np.unique(emb.subject):
        part = emb.select(emb.subject == name)
        if len(part) >= 3:
            i, j = subject_pairs(part.scan, max_pairs=max_pairs, seed=seed)
            rho[str(name)] = _spearman(pair_distances(part.embedding, i, j), pair_distances(part.position, i, j))
    return rho


def rho_within(emb: Embeddings, max_pairs: int = MAX_PAIRS, seed: int = 0) -> float:
    """Mean over the subjects of `rho_per_subject`, so that each patient counts once whatever its crops and size.

    Pairs are of one image, since two images of a subject need not share a frame.
    NaN where it is undefined for every subject; a subject for which it is undefined does not count.
    """
    values = np.array(list(rho_per_subject(emb, max_pairs, seed).values()))
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def rho_across(emb: Embeddings, max_pairs: int = MAX_PAIRS, seed: int = 0) -> float:
    """Spearman's rho between latent and anatomical distances (mm) over pairs of different subjects, pooled.

    Distances are taken between positions relative to each patient's origin. Where no origin was given they are taken in
    the scanner's frame, and the value says as much about how alike patients lie as about the embedding.
    NaN with fewer than two subjects.
    """
    i, j = subject_pairs(emb.subject, across=True, max_pairs=max_pairs, seed=seed)
    return _spearman(pair_distances(emb.embedding, i, j), pair_distances(emb.anatomical_position, i, j))


def fit_position(train: Embeddings) -> Pipeline:
    """Ridge regression of the anatomical position (mm) on standardised embeddings.

    The penalty is chosen by cross-validation over patients (up to 5 folds) within `train`; with one patient only,
    over its crops. Nothing but `train` is looked at.

    Raises:
        ValueError: there are fewer than 2 crops.
    """
    if len(train) < 2:
        raise ValueError(f"Position regression needs at least 2 training crops, got {len(train)}.")
    patients = len(np.unique(train.subject))
    grouped = patients > 1
    by_crop = KFold(min(5, len(train)), shuffle=True, random_state=0)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": _ALPHAS},
        scoring="neg_mean_squared_error",
        cv=GroupKFold(min(5, patients)) if grouped else by_crop,
    )
    search.fit(train.embedding.astype(np.float64), train.anatomical_position, groups=train.subject if grouped else None)
    return search.best_estimator_


def position_scores(model: Pipeline, test: Embeddings) -> dict[str, float]:
    """Errors of a fitted position regression on other patients.

    Returns:
        `r2`, the mean over the axes of `r2_x`, `r2_y` and (3D) `r2_z`, and `median_error_mm`, the median
        distance between predicted and true anatomical position.
    """
    return _regression_scores(model.predict(test.embedding.astype(np.float64)), test.anatomical_position)


def cross_fitted_position_scores(emb: Embeddings) -> dict[str, float]:
    """As `position_scores`, where no training patients are at hand: each half of the patients predicts the other.

    All values are NaN with fewer than two subjects or four crops.
    """
    predicted = np.full_like(emb.position, np.nan)
    if len(np.unique(emb.subject)) > 1 and len(emb) >= 4:
        for fit, held_out in GroupKFold(2).split(emb.embedding, groups=emb.subject):
            if len(fit) > 1:
                model = fit_position(emb.select(fit))
                predicted[held_out] = model.predict(emb.embedding[held_out].astype(np.float64))
    return _regression_scores(predicted, emb.anatomical_position)


def position_table(train: Embeddings, test: Embeddings) -> dict[str, float]:
    """The row of an evaluation: rho_within, rho_across, r2, median_error_mm and rankme of held-out patients.

    Args:
        train: patients on whom the position regression is fitted; they are used for nothing else.
        test: other patients.

    Raises:
        ValueError: a patient is in both.
    """
    both = np.intersect1d(train.subject, test.subject)
    if len(both):
        raise ValueError(
            f"Patient {both[0]} is in the training and the test embeddings: keep each patient in one split."
        )
    scores = position_scores(fit_position(train), test)
    return {
        "rho_within": rho_within(test),
        "rho_across": rho_across(test),
        "r2": scores["r2"],
        "median_error_mm": scores["median_error_mm"],
        "rankme": rankme(test.embedding),
    }


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho, NaN where it is undefined: fewer than 3 values, or all equal."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def _regression_scores(predicted: np.ndarray, position: np.ndarray) -> dict[str, float]:
    """R2 per axis and on average, and the median distance, of positions `(N, D)` in mm."""
    axes = "xyz"[: position.shape[1]]
    if not np.isfinite(predicted).all():
        return {name: float("nan") for name in ("r2", "median_error_mm", *(f"r2_{axis}" for axis in axes))}
    r2 = r2_score(position, predicted, multioutput="raw_values")
    return {
        "r2": float(r2.mean()),
        "median_error_mm": float(np.median(np.linalg.norm(predicted - position, axis=1))),
        **{f"r2_{axis}": float(value) for axis, value in zip(axes, r2)},
    }
