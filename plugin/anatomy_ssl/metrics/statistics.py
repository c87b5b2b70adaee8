"""Comparing methods over the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import ttest_rel


def mean_sd(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) of the values that are not NaN; NaN where there are too few."""
    defined = np.asarray(values, dtype=float)
    defined = defined[~np.isnan(defined)]
    mean = float(defined.mean()) if len(defined) else float("nan")
    return mean, float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")


def random_rows(column: str, results: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Two rows of a table, mean and sd over random networks: the baseline that stands beside every trained one.

    Args:
        column: of the table that names the methods.
        results: metric -> value of each random network.
    """
    return [
        {column: f"random, {name} of {len(results)}"}
        | {key: mean_sd([values[key] for values in results])[part] for key in results[0]}
        for part, name in enumerate(("mean", "sd"))
    ]


def paired_t_test(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Two-sided paired t-test of two methods on the same folds.

    The training parts of a cross-validation overlap, so folds are not independent and p is smaller than it ought to be
    (Nadeau and Bengio 2003); it is reported because the papers report it.

    Args:
        a: one value per fold.
        b: the other method's values on the same folds in the same order.

    Returns:
        `difference` (mean of a - b) with its 95% confidence interval `ci_low`, `ci_high`; `t` and `p`;
        `n`, folds that entered, and `dropped`, folds left out because one of the two values is NaN. Where all
        differences are zero, `t` and `p` are NaN.

    Raises:
        ValueError: the lengths differ, or fewer than 2 folds are left.
    """
    pairs = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if pairs[0].shape != pairs[1].shape:
        raise ValueError(f"A paired test needs the same folds of both methods, got {len(a)} and {len(b)} values.")
    defined = ~(np.isnan(pairs[0]) | np.isnan(pairs[1]))
    left, right = pairs[0][defined], pairs[1][defined]
    if len(left) < 2:
        raise ValueError(f"A paired test needs at least 2 folds in which both methods have a value, got {len(left)}.")
    with np.errstate(divide="ignore", invalid="ignore"):
        test = ttest_rel(left, right)
        interval = test.confidence_interval(0.95)
    return {
        "difference": float((left - right).mean()),
        "ci_low": float(interval.low),
        "ci_high": float(interval.high),
        "t": float(test.statistic),
        "p": float(test.pvalue),
        "n": len(left),
        "dropped": int((~defined).sum()),
    }


def comparison_table(results: Mapping[str, Sequence[float]], reference: str | None = None) -> list[dict[str, Any]]:
    """One row per method: mean and sd over the folds, and the paired test of the method against the reference.

    Args:
        results: one value per fold for each method, on the same folds.
        reference: the method that the others are compared with; the first by default.

    Returns:
        rows for `anatomy_ssl.metrics.tables.write_table`; `difference` is method minus reference, and the
        reference's own row has no test.

    Raises:
        ValueError: the reference is not among the methods, or folds differ.
    """
    reference = next(iter(results)) if reference is None else reference
    if reference not in results:
        raise ValueError(f"There is no method {reference} to compare with, only {', '.join(results)}.")
    rows = []
    for method, values in results.items():
        mean, sd = mean_sd(values)
        row: dict[str, Any] = {"method": method, "folds": len(values), "mean": mean, "sd": sd}
        if method != reference:
            row["against"] = reference
            row.update(paired_t_test(values, results[reference]))
        rows.append(row)
    return rows
