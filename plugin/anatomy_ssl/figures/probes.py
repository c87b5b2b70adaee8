"""Probes of several methods side by side (Jabareen et al. 2024, arXiv 2410.16947, figure 3)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anatomy_ssl.figures.canvas import PALETTE, new_figure, save
from anatomy_ssl.metrics.statistics import mean_sd, paired_t_test

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {"auc": "AUC", "spearman": "Spearman's ρ", "r2": "R²", "mae": "mean absolute error"}


def auc_per_fold(
    results: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    metric: str = "auc",
    reference: str | None = None,
) -> Path:
    """A dot per fold and a box per method, with paired t-tests of every other method against the reference.

    Args:
        results: one value per fold for each method, on the same folds (see `metrics.read_probe`); NaN is not drawn.
        path: the picture to write.
        metric: what the values are: auc (chance is drawn at 0.5), spearman, r2 or mae.
        reference: the method that brackets start at; the first by default.

    Raises:
        ValueError: there are no methods, the reference is not one of them, or a method has no values.
    """
    reference = next(iter(results), None) if reference is None else reference
    if reference is None or reference not in results:
        raise ValueError(f"There is no method {reference} among the probe results ({', '.join(results) or 'none'}).")
    values = {name: np.asarray(folds, dtype=float) for name, folds in results.items()}
    defined = {name: folds[~np.isnan(folds)] for name, folds in values.items()}
    empty = [name for name, folds in defined.items() if not len(folds)]
    if empty:
        raise ValueError(f"The method {empty[0]} has no fold with a value to draw.")
    with new_figure(10, 5.5) as figure:
        axes = figure.subplots()
        axes.boxplot(list(defined.values()), widths=0.45, showfliers=False, medianprops={"color": "black"})
        for k, folds in enumerate(defined.values(), start=1):
            # Dots are spread over a fixed pattern, not at random: the same data give the same picture.
            x = k + 0.14 * np.linspace(-1, 1, len(folds)) if len(folds) > 1 else np.array([k])
            colour = PALETTE[(k - 1) % len(PALETTE)]
            axes.scatter(x, folds, s=28, color=colour, zorder=3, edgecolors="white", linewidths=0.5)
        if metric == "auc":
            axes.axhline(0.5, color="grey", linestyle=":", linewidth=1.2)
            axes.annotate("chance", (1, 0.5), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="grey")
        summary = {name: mean_sd(folds) for name, folds in defined.items()}
        labels = [f"{name}\n{mean:.3f} ± {sd:.3f}" for name, (mean, sd) in summary.items()]
        axes.set_xticks(range(1, len(labels) + 1), labels)
        axes.set_ylabel(f"{_LABELS.get(metric, metric)} per fold (p: paired t-test)")
        _draw_tests(axes, values, reference)
        return save(figure, path)


def _draw_tests(axes: Axes, values: Mapping[str, np.ndarray], reference: str) -> None:
    """Brackets from the reference to every other method with the p value of the paired t-test, nearest first."""
    names = list(values)
    start = names.index(reference)
    others = sorted((k for k in range(len(names)) if k != start), key=lambda k: abs(k - start))
    low, high = axes.get_ylim()
    step = 0.1 * (high - low)
    for level, k in enumerate(others):
        shared = ~(np.isnan(values[names[k]]) | np.isnan(values[reference]))
        if shared.sum() < 2:
            continue
        p = paired_t_test(values[reference], values[names[k]])["p"]
        y = high + step * level
        axes.plot([start + 1, start + 1, k + 1, k + 1], [y, y + step / 4, y + step / 4, y], color="black", linewidth=1)
        text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if np.isfinite(p) else "equal in all folds"
        axes.text((start + k) / 2 + 1, y + 0.35 * step, text, ha="center", va="bottom", fontsize=10)
    if others:
        axes.set_ylim(low, high + step * (len(others) + 0.2))
