"""Tokens at landmarks in two dimensions, and radiographs coloured by the clusters of their tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.manifold import TSNE

from anatomy_ssl.figures.canvas import PALETTE, new_figure, save
from anatomy_ssl.figures.correspondence import Picture, draw_picture, show

__all__ = ["cosegmentation_figure", "landmark_tsne"]


def landmark_tsne(
    methods: Mapping[str, np.ndarray], names: np.ndarray, path: str | os.PathLike[str], seed: int = 0
) -> Path:
    """t-SNE of what several methods say of landmarks, one panel each; a colour and a number for each landmark.

    Args:
        methods: title -> vectors `(N, F)`, compared by Euclidean distance.
        names: `(N,)` name of the landmark of each row.
        path: the picture to write.
        seed: of t-SNE.
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    kinds = list(dict.fromkeys(names))
    colours = colormaps["gist_rainbow"](np.linspace(0, 1, len(kinds)))[:, :3] * 0.88
    perplexity = min(30.0, max(2.0, (len(names) - 1) / 3 - 1))
    legend = (len(kinds) + 3) // 4
    with new_figure(4.4 * len(methods), 4.9 + 0.2 * legend) as figure:
        panels = figure.subplots(1, len(methods), squeeze=False)[0]
        for axes, (title, z) in zip(panels, methods.items()):
            flat = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(z.astype(np.float32))
            for number, (kind, colour) in enumerate(zip(kinds, colours), start=1):
                points = flat[names == kind]
                axes.scatter(*points.T, color=[colour], s=16, linewidths=0)
                row, column = np.median(points, axis=0)
                box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.65}
                axes.text(row, column, str(number), ha="center", va="center", fontsize=8, fontweight="bold", bbox=box)
            axes.set(xticks=[], yticks=[], title=title, xlabel="t-SNE 1", ylabel="t-SNE 2")
        labels = [f"{number} {kind.replace('_', ' ')}" for number, kind in enumerate(kinds, start=1)]
        marks = [Line2D([], [], marker="o", ls="", color=c, label=text) for c, text in zip(colours, labels)]
        figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=9, handletextpad=0.1)
        return save(figure, path)


def cosegmentation_figure(
    pictures: Sequence[Picture],
    methods: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    masks: Sequence[np.ndarray | None],
    path: str | os.PathLike[str],
) -> Path:
    """Radiographs, and under them the same with every pixel in the colour of its cluster, which all of them share.

    Args:
        pictures: the radiographs.
        methods: title -> for each picture the clusters `(rows, columns)`, from 0, and the affine of that map.
        masks: for each picture a mask `(rows, columns)` of the file's size, drawn as an outline; None for none.
        path: the picture to write.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    most = max(int(labels.max()) for maps in methods.values() for labels, _ in maps) + 1
    colours = np.array([to_rgb(colour) for colour in PALETTE])
    if most > len(colours):
        colours = colormaps["gist_rainbow"](np.linspace(0, 1, most))[:, :3]
    height = float(np.mean([p.size[0] / p.size[1] for p in pictures]))
    rows, width = len(methods) + 1, 2.4
    with new_figure(max(6.0, width * len(pictures) + 0.3), (width * height + 0.1) * rows + 0.4) as figure:
        panels = figure.subplots(rows, len(pictures), squeeze=False)
        for axes, picture in zip(panels.flat, list(pictures) * rows):
            draw_picture(axes, picture)
        for axes, picture in zip(panels[0], pictures):
            axes.set_title(picture.title)
        for line, (title, maps) in zip(panels[1:], methods.items()):
            line[0].set_ylabel(title)
            for axes, (labels, affine), mask in zip(line, maps, masks):
                show(axes, colours[labels], affine, alpha=0.45, interpolation="nearest")
                if mask is not None and mask.any() and not mask.all():
                    axes.contour(mask.astype(float), levels=[0.5], colors="white", linewidths=1.2)
        return save(figure, path)
