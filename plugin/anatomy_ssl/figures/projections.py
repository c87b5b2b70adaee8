"""What the latent space looks like along the body's axes (Jabareen et al. 2024, arXiv 2410.16947, figures 2 and 4)."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.figures.canvas import PALETTE, POSITION_COLOURS, axis_names, new_figure, save


def umap_by_axis(
    emb: Embeddings,
    path: str | os.PathLike[str],
    title: str = "",
    seed: int = 0,
    neighbours: int = 15,
    max_crops: int = 5_000,
) -> Path:
    """Two-dimensional UMAP of the embeddings, once per body axis, coloured by the true position along it in mm.

    Args:
        emb: crops; their positions relative to the patient's origin give the colours.
        path: the picture to write.
        title: over the panels, usually the method's name.
        seed: of UMAP and of the draw of crops.
        neighbours: size of the neighbourhoods that UMAP keeps.
        max_crops: where there are more crops, this many are drawn.

    Raises:
        ImportError: umap-learn or matplotlib is not installed.
        ValueError: there are fewer than 5 crops.
    """
    emb, title = _subset(emb, max_crops, seed, title)
    flat = _umap(emb.embedding, neighbours, seed)
    names = axis_names(emb.position.shape[1])
    with new_figure(10, 4) as figure:
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name, position in zip(panels, names, emb.anatomical_position.T):
            # Two crops in a hundred must not decide on the colours of all others.
            low, high = np.percentile(position, [1, 99])
            points = axes.scatter(*flat.T, c=position, cmap=POSITION_COLOURS, vmin=low, vmax=high, s=6, linewidths=0)
            figure.colorbar(points, ax=axes, orientation="horizontal", label=f"{name} (mm)", extend="both")
            axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        figure.suptitle(title)
        return save(figure, path)


def pca_against_axes(
    emb: Embeddings, path: str | os.PathLike[str], title: str = "", seed: int = 0, max_crops: int = 5_000
) -> Path:
    """The first three principal components of the embeddings against the position along each body axis in mm.

    Args:
        emb: crops; positions are relative to the patient's origin.
        path: the picture to write.
        title: over the panels, usually the method's name.
        seed: of the draw of crops.
        max_crops: this many dots are drawn at most; components and correlations (Pearson's r) are those of the dots.
    """
    emb, title = _subset(emb, max_crops, seed, title)
    with np.errstate(invalid="ignore"):  # a collapsed embedding has no variance to explain
        pca = PCA(min(3, *emb.embedding.shape), svd_solver="full").fit(emb.embedding.astype(np.float64))
    components = pca.transform(emb.embedding.astype(np.float64))  # (N, 3)
    names, position = axis_names(emb.position.shape[1]), emb.anatomical_position
    with new_figure(10, 2.6 * components.shape[1] + 0.6) as figure:
        grid = figure.subplots(components.shape[1], len(names), squeeze=False, sharex="col", sharey="row")
        for row, component in enumerate(components.T):
            for column, name in enumerate(names):
                axes, x = grid[row, column], position[:, column]
                r = np.corrcoef(x, component)[0, 1] if np.ptp(x) and np.ptp(component) else float("nan")
                axes.scatter(x, component, s=4, color=PALETTE[0], alpha=0.35, linewidths=0)
                axes.set_title(f"r = {r:.2f}", fontweight="bold" if abs(r) >= 0.5 else "normal")
                if row == components.shape[1] - 1:
                    axes.set_xlabel(f"{name} (mm)")
            share = np.nan_to_num(pca.explained_variance_ratio_)[row]
            grid[row, 0].set_ylabel(f"component {row + 1}\n({share:.0%} of variance)")
        figure.suptitle(title)
        return save(figure, path)


def _subset(emb: Embeddings, max_crops: int, seed: int, title: str) -> tuple[Embeddings, str]:
    """At most `max_crops` crops, drawn at random, and a title that says so."""
    if len(emb) < 5:
        raise ValueError(f"The latent space of {len(emb)} crops cannot be drawn: give at least 5.")
    if len(emb) <= max_crops:
        return emb, title
    rows = np.random.default_rng(seed).choice(len(emb), max_crops, replace=False)
    return emb.select(np.sort(rows)), f"{title} ({max_crops:,} of {len(emb):,} crops)".strip()


def _umap(z: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    """UMAP of `(N, F)` in two dimensions, `(N, 2)`."""
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("UMAP figures need umap-learn: pip install anatomy-ssl[figures].") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value", category=UserWarning)  # a seed implies one thread
        return UMAP(n_neighbors=min(neighbours, len(z) - 1), random_state=seed).fit_transform(z)
