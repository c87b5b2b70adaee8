"""Panels of grid views."""

from __future__ import annotations

import numpy as np
import pytest

from anatomy_ssl.figures.canvas import new_figure
from anatomy_ssl.figures.views import _draw, _plane, grid_view_image

pytest.importorskip("matplotlib")


def lines(framed: np.ndarray) -> set[tuple[tuple[float, ...], tuple[float, ...]]]:
    """The strokes that frame cells of a picture."""
    with new_figure(3, 3) as figure:
        axes = figure.subplots()
        _draw(axes, np.zeros((8, 12)), 0, 1, framed, np.zeros_like(framed))
        return {(tuple(map(float, line.get_xdata())), tuple(map(float, line.get_ydata()))) for line in axes.lines}


def test_the_outline_runs_around_the_framed_cells() -> None:
    framed = np.zeros((4, 6), bool)
    framed[1, 2:4] = True
    assert lines(framed) == {
        ((2, 3), (1, 1)),
        ((3, 4), (1, 1)),
        ((2, 3), (2, 2)),
        ((3, 4), (2, 2)),
        ((2, 2), (1, 2)),
        ((4, 4), (1, 2)),
    }
    assert len(lines(np.ones((4, 6), bool))) == 20


def test_volumes_show_the_middle_slice_upright() -> None:
    """The patient's front is up and the right side on the left, of image and cells alike."""
    volume = np.zeros((6, 4, 5))
    volume[5, 3, 2] = 1  # most right, most anterior
    plane = _plane(volume)
    assert plane.shape == (4, 6)
    assert plane[0, 0] == 1


@pytest.mark.parametrize("dims", [2, 3])
def test_picture(dims: int) -> None:
    grid, size = (3, 2, 2)[:dims], (12, 8, 8)[:dims]
    panels = {name: np.random.default_rng(i).random((2, *size)) for i, name in enumerate("ab")}
    marks = {"b": np.random.default_rng(3).random((2, *grid)) > 0.5}
    picture = grid_view_image(panels, grid, marks, {"a": ~marks["b"]}, ["p1", "p2"], "title")
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.std() > 20
    plain = grid_view_image(panels, grid, names=["p1", "p2"], title="title")
    assert plain.shape == picture.shape
    assert (plain != picture).any()


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        grid_view_image({}, (2, 2))
    with pytest.raises(ValueError, match="panel b"):
        grid_view_image({"a": np.zeros((1, 4, 4)), "b": np.zeros((1, 4, 6))}, (2, 2))
    with pytest.raises(ValueError, match="panel a"):
        grid_view_image({"a": np.zeros((1, 4, 4))}, (2, 2, 2))
