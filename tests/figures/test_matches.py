"""Slices through matched points lie where the points lie, however a volume is stored, and are as wide as the body."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.matching.bodies import ORIENTATIONS

pytest.importorskip("matplotlib")

from anatomy_ssl.figures.canvas import new_figure
from anatomy_ssl.figures.matches import match_figure, three_views
from anatomy_ssl.figures.planes import VIEWS, Upright, draw_slices
from anatomy_ssl.figures.similarity import sampled_slice, similarity_figure

AFFINE = nib.affines.from_matvec(np.diag([2.0, 3.0, 5.0]), [-20.0, -15.0, -50.0])
POINT = nib.affines.apply_affine(AFFINE, [12, 4, 9])


def spot() -> nib.Nifti1Image:
    """One bright voxel at `POINT`."""
    values = np.zeros((20, 10, 15), np.float32)
    values[12, 4, 9] = 1
    return nib.Nifti1Image(values, AFFINE)


def tensor(image: nib.Nifti1Image) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.asarray(image.dataobj).copy())[None], affine=torch.from_numpy(image.affine))


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=range(48))
def test_a_point_is_drawn_where_it_lies(orientation: np.ndarray) -> None:
    """All three slices show the bright voxel, at the same place, whatever the storage."""
    volume = Upright(tensor(spot().as_reoriented(orientation)))
    assert volume.values.shape == (20, 10, 15) and np.allclose(volume.size, [40, 30, 75])
    assert np.allclose(volume.place(POINT), [25, 13.5, 47.5])
    for _, across, right, up in VIEWS:
        plane = volume.slice(across, POINT)
        index = [12, 4, 9]
        assert plane[index[right], index[up]] == 1


def test_a_millimetre_is_equally_long_everywhere() -> None:
    volume = Upright(tensor(spot()))
    with new_figure(9, 5) as figure:
        (panels,) = three_views(figure, [volume])
        draw_slices(panels, volume, POINT, (0, 1))
        figure.canvas.draw()
        scales = []
        for axes, (_, _, right, up) in zip(panels, VIEWS):
            box = axes.get_window_extent()
            scales += [box.width / volume.size[right], box.height / volume.size[up]]
        assert axes.xaxis_inverted()
    assert np.ptp(scales) / np.mean(scales) < 0.05


def test_points_outside_are_shown_by_the_nearest_slice() -> None:
    volume = Upright(tensor(spot()))
    assert np.array_equal(volume.slice(2, [0, 0, 1e4]), volume.values[:, :, -1])


def test_the_map_lies_upon_the_anatomy() -> None:
    """A similarity on a grid of its own, of coordinates: each pixel gets its own."""
    grid = nib.affines.from_matvec(np.diag([8.0, 6.0, 10.0]), [-22.0, -15.0, -50.0])
    index = np.stack(np.meshgrid(*map(np.arange, (6, 6, 8)), indexing="ij"), -1)
    for axis in range(3):
        values = torch.from_numpy(nib.affines.apply_affine(grid, index)[..., axis])[None]
        volume = Upright(tensor(spot()))
        for _, across, right, up in VIEWS:
            plane = sampled_slice(MetaTensor(values, affine=torch.from_numpy(grid)), volume, across, POINT)
            assert plane.shape == (volume.values.shape[right], volume.values.shape[up])
            place = nib.affines.apply_affine(AFFINE, [12, 4, 9])[axis]
            here = [12, 4, 9]
            assert plane[here[right], here[up]] == pytest.approx(place, abs=1e-3)


def test_pictures_are_written(tmp_path: Path) -> None:
    volume = tensor(spot())
    path = match_figure(volume, volume, POINT, POINT + 5, tmp_path / "match.png", title="carina", truth=POINT)
    assert path.stat().st_size > 1000
    map_ = MetaTensor(torch.rand(1, 5, 4, 6), affine=torch.from_numpy(AFFINE))
    assert similarity_figure(volume, volume, map_, POINT, POINT, tmp_path / "map.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="volumes"):
        Upright(MetaTensor(torch.zeros(1, 5, 5), affine=torch.eye(3)))
