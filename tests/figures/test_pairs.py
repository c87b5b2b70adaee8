"""Rows of views."""

from __future__ import annotations

import numpy as np
import pytest

from anatomy_ssl.figures.pairs import _plane, view_rows_image

pytest.importorskip("matplotlib")


def test_volumes_show_the_axial_above_the_coronal_slice_upright() -> None:
    volume = np.zeros((6, 4, 5))
    volume[5, 3, 2] = 1  # right, anterior, in the middle axial slice
    volume[0, 2, 4] = 2  # left, in the middle coronal slice, at the head
    plane = _plane(volume, (3, 2, 2))
    assert plane.shape == (4 + 1 + 5, 6)
    assert plane[0, 0] == 1
    assert plane[5, 5] == 2


def test_radiographs_run_along_their_first_axis() -> None:
    image = np.zeros((6, 4))
    image[5, 0] = 1
    assert _plane(image, (3, 2))[0, 5] == 1


@pytest.mark.parametrize("shape", [(3, 8, 8, 8), (1, 6, 8, 12), (2, 10, 16)])
def test_a_row_for_each_case(shape: tuple[int, ...]) -> None:
    panels = {name: np.random.default_rng(0).random(shape) for name in ("view 1", "view 2")}
    picture = view_rows_image(panels, [str(i) for i in range(shape[0])], "epoch 1")
    assert (picture.ndim, picture.shape[2], picture.dtype) == (3, 3, np.uint8)
    assert picture.std() > 0


def test_slices_go_through_the_voxel_that_is_asked_for() -> None:
    volume = np.zeros((4, 4, 4))
    volume[:, :, 1], volume[:, 3] = 1, 2
    plane = _plane(volume, (0, 3, 1))
    assert (plane[1:4] == 1).all()
    assert (plane[5:] == 2).all()


@pytest.mark.parametrize("panels", [{}, {"a": np.zeros((1, 4))}, {"a": np.zeros((1, 4, 4)), "b": np.zeros((2, 4, 4))}])
def test_panels_that_do_not_fit_are_refused(panels: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        view_rows_image(panels)
