"""All figures of the paper from saved embeddings and probe results: what `python -m anatomy_ssl figure` calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.figures.distances import distance_difference_histogram
from anatomy_ssl.figures.probes import auc_per_fold
from anatomy_ssl.figures.projections import pca_against_axes, umap_by_axis
from anatomy_ssl.metrics.probe import read_probe

KINDS = ("distances", "umap", "pca", "auc")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def draw_figures(
    embeddings: Paths = (),
    output: str | os.PathLike[str] = "figures",
    kind: str | Sequence[str] = "all",
    probe: Paths = (),
    metric: str = "auc",
    reference: str | None = None,
    reference_length: float | None = None,
    seed: int = 0,
) -> list[Path]:
    """Draw figures 1 to 4 of Jabareen et al. 2024 (arXiv 2410.16947).

    Args:
        embeddings: npz files that `Embeddings.save` wrote, one per method, as a list or separated by commas. A method
            is named after its file, or by writing `name=path`.
        output: folder for distances.png, umap_METHOD.png, pca_METHOD.png and METRIC_per_fold.png.
        kind: distances, umap, pca, auc, several of them, or all that the given files allow.
        probe: CSV files of probe results with the columns method, fold, metric, value.
        metric: the metric of the probe results to draw.
        reference: the method that the others' probes are tested against; the first by default.
        reference_length: millimetres per unit of latent distance in distances.png; None fits it for each method.
        seed: of UMAP and of all draws.

    Returns:
        the pictures written.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an unknown kind, a kind whose files are not given, or two methods of one name.
    """
    methods, probes = _load_methods(_listed(embeddings)), _listed(probe)
    possible = [name for name in KINDS if (probes if name == "auc" else methods)]
    kinds = possible if kind == "all" else [str(name) for name in _listed(kind)]
    for name in kinds:
        if name not in KINDS:
            raise ValueError(f"There is no figure {name}: choose from {', '.join(KINDS)} or all.")
        if name not in possible:
            needed = "probe results" if name == "auc" else "embeddings"
            raise ValueError(f"The figure {name} is drawn from {needed}: give such a file.")
    if not kinds:
        raise ValueError("There is nothing to draw: give embeddings, probe results or both.")
    folder, written = Path(output), []
    if "distances" in kinds:
        written.append(distance_difference_histogram(methods, folder / "distances.png", reference_length, seed))
    for name, emb in methods.items():
        if "umap" in kinds:
            written.append(umap_by_axis(emb, folder / f"umap_{name}.png", name, seed))
        if "pca" in kinds:
            written.append(pca_against_axes(emb, folder / f"pca_{name}.png", name, seed))
    if "auc" in kinds:
        written.append(auc_per_fold(read_probe(probes, metric), folder / f"{metric}_per_fold.png", metric, reference))
    return written


def _listed(paths: Paths) -> list[str]:
    """One path, paths separated by commas, or a list of either, as a list."""
    if isinstance(paths, (str, os.PathLike)):
        return [part for part in os.fspath(paths).split(",") if part]
    return [part for path in paths for part in _listed(path)]


def _load_methods(paths: Sequence[str]) -> dict[str, Embeddings]:
    """Embeddings by the name of their method."""
    methods: dict[str, Embeddings] = {}
    for item in paths:
        name, _, path = item.rpartition("=")
        name = name or Path(path).stem
        if name in methods:
            raise ValueError(f"Two methods are called {name}: name them by writing name=path.")
        methods[name] = Embeddings.load(path)
    return methods
