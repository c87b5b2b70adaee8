"""How far latent distances are from physical ones (Jabareen et al. 2024, arXiv 2410.16947, figure 1)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.figures.canvas import PALETTE, new_figure, save
from anatomy_ssl.metrics.position import MAX_PAIRS, pair_distances, subject_pairs


def distance_differences(
    emb: Embeddings, reference_length: float | None = None, max_pairs: int = MAX_PAIRS, seed: int = 0
) -> tuple[np.ndarray, float]:
    """`|D_latent - D_physical|` in mm over pairs of crops of one subject.

    Args:
        emb: crops of any number of subjects.
        reference_length: millimetres per unit of latent distance, as in training. None takes the one factor that brings
            latent distances closest to physical ones (least squares), which also places methods whose latent space has
            no unit (random encoders, SimCLR) and favours none.
        max_pairs: more pairs are subsampled.
        seed: of that draw.

    Returns:
        the differences `(P,)`, and the millimetres per unit that were used.

    Raises:
        ValueError: no subject has two crops.
    """
    i, j = subject_pairs(emb.scan, max_pairs=max_pairs, seed=seed)
    if not len(i):
        raise ValueError("No subject has two crops, so there are no distances within a subject to draw.")
    latent, physical = pair_distances(emb.embedding, i, j), pair_distances(emb.position, i, j)
    if reference_length is None:
        reference_length = float(latent @ physical / max(latent @ latent, np.finfo(np.float32).tiny))
    return np.abs(reference_length * latent - physical), reference_length


def distance_difference_histogram(
    methods: Embeddings | Mapping[str, Embeddings],
    path: str | os.PathLike[str],
    reference_length: float | None = None,
    seed: int = 0,
) -> Path:
    """Histogram of `distance_differences`, one or several methods over one another; the dashes are medians.

    Args:
        methods: embeddings, or embeddings by the name of their method.
        path: the picture to write.
        reference_length: millimetres per unit of latent distance, None to fit it for each method.
        seed: of the draw of pairs.
    """
    named = {"": methods} if isinstance(methods, Embeddings) else dict(methods)
    drawn = {name: distance_differences(emb, reference_length, seed=seed) for name, emb in named.items()}
    edges = np.linspace(0, max(np.percentile(values, 99.5) for values, _ in drawn.values()) or 1.0, 61).tolist()
    with new_figure(10, 5.5) as figure:
        axes = figure.subplots()
        for k, (name, (values, unit)) in enumerate(drawn.items()):
            colour, median = PALETTE[k % len(PALETTE)], float(np.median(values))
            label = f"{name}: " if name else ""
            label += f"median {median:.1f} mm ({unit:.3g} mm per latent unit)"
            share = np.full(len(values), 100 / len(values))
            axes.hist(values, edges, weights=share, histtype="stepfilled", color=colour, alpha=0.2)
            axes.hist(values, edges, weights=share, histtype="step", color=colour, linewidth=1.8, label=label)
            axes.axvline(median, color=colour, linestyle="--", linewidth=1.2)
        axes.set_xlim(0, edges[-1])
        axes.set_xlabel("|latent distance − physical distance| (mm)")
        axes.set_ylabel("share of pairs (%)")
        axes.set_title("Pairs of crops of one patient")
        axes.legend()
        return save(figure, path)
