"""Where else in a volume a point of another would fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd

from anatomy_ssl.figures.canvas import new_figure, save
from anatomy_ssl.figures.matches import FOUND, Point, draw_cross, three_views, window_of
from anatomy_ssl.figures.planes import VIEWS, Upright, draw_slices
from anatomy_ssl.transforms.crops import world_to_voxel
from anatomy_ssl.transforms.resampling import sample_volume

__all__ = ["sampled_slice", "similarity_figure"]


def similarity_figure(
    source: MetaTensor,
    target: MetaTensor,
    similarity: MetaTensor,
    query: Point,
    match: Point,
    path: str | os.PathLike[str],
    names: Sequence[str] = ("source", "target"),
    title: str = "",
    lowest: float = 0.0,
) -> Path:
    """The slices through a query, and below them those through its match, coloured by how alike each place is.

    Args:
        source: `(1, *spatial)` with affine.
        target: likewise.
        similarity: `(1, *grid)` of the target, 1 where it is just like the query, with the affine from the grid to
            world mm.
        query: world mm `(3,)` in the source.
        match: world mm `(3,)` in the target.
        path: the picture to write.
        names: of the two, on the left.
        title: over all.
        lowest: similarity up to which nothing is coloured.
    """
    volumes = Upright(source), Upright(target)
    window = window_of(volumes)
    heat = {"cmap": "inferno", "vmin": lowest, "vmax": 1.0, "interpolation": "bilinear", "origin": "lower"}
    with new_figure(9.0, 5.0) as figure:
        rows = three_views(figure, volumes)
        for panels, volume, point, name in zip(rows, volumes, (query, match), names):
            draw_slices(panels, volume, point, window)
            panels[0].set_ylabel(name)
        for axes, (_, across, right, up) in zip(rows[1], VIEWS):
            values = sampled_slice(similarity, volumes[1], across, match).T
            extent = (0, volumes[1].size[right], 0, volumes[1].size[up])
            alpha = 0.75 * ((values - lowest) / (1 - lowest)).clip(0, 1)
            drawn = axes.imshow(values, extent=extent, alpha=np.nan_to_num(alpha), **heat)
        for panels, volume, point in zip(rows, volumes, (query, match)):
            draw_cross(panels, volume, point, FOUND)
        from matplotlib.cm import ScalarMappable

        scale = ScalarMappable(drawn.norm, drawn.cmap)
        figure.colorbar(scale, ax=list(rows.ravel()), shrink=0.5, pad=0.01, label="similarity")
        figure.suptitle(title)
        return save(figure, path)


def sampled_slice(similarity: MetaTensor, volume: Upright, across: int, point: Point) -> np.ndarray:
    """The map at the voxels of a slice through a point; beyond the map's outermost entries, theirs."""
    index = [np.arange(n, dtype=float) for n in volume.values.shape]
    index[across] = np.clip(volume.index(point)[[across]], 0, volume.values.shape[across] - 1)
    voxels = np.stack(np.meshgrid(*index, indexing="ij"), axis=-1).squeeze(across)
    world = torch.from_numpy(voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3])
    places = world_to_voxel(to_affine_nd(3, similarity.affine), world.reshape(-1, 3)).reshape(1, *world.shape[:2], 1, 3)
    return sample_volume(similarity.as_tensor().float(), places)[0, 0, ..., 0].numpy()
