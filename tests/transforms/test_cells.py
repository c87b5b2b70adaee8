"""Cells of a grid: permutation and intensity curves, against plain loops."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from anatomy_ssl.transforms.cells import LEVELS, RandBezierIntensity, permute_cells


@pytest.mark.parametrize(("grid", "size"), [((2, 3), (4, 9)), ((7, 7), (7, 7)), ((2, 1, 3), (4, 5, 6))])
def test_places_show_the_cells_of_the_order(grid: tuple[int, ...], size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, *size, generator=generator)
    places = list(product(*[range(n) for n in grid]))
    order = torch.stack([torch.randperm(len(places), generator=generator) for _ in range(3)])
    found = permute_cells(x, order, grid)
    sides = [s // n for s, n in zip(size, grid)]

    def box(place: tuple[int, ...]) -> tuple[slice, ...]:
        return (slice(None), *[slice(p * s, (p + 1) * s) for p, s in zip(place, sides)])

    for n in range(3):
        for j, place in enumerate(places):
            assert torch.equal(found[n][box(place)], x[n][box(places[int(order[n, j])])])
    assert torch.equal(permute_cells(found, order.argsort(dim=1), grid), x)


def test_orders_of_other_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        permute_cells(torch.zeros(1, 1, 5, 4), torch.zeros(1, 4, dtype=torch.long), (2, 2))
    with pytest.raises(ValueError, match="order is"):
        permute_cells(torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, dtype=torch.long), (2, 2))


def curves(monotone: float, invert: float, count: int = 200) -> np.ndarray:
    """What the transform does to a ramp from 0 to 1, `(count, LEVELS)`."""
    ramp = torch.linspace(0, 1, LEVELS).expand(count, 1, LEVELS)
    transform = RandBezierIntensity(1.0, monotone, invert)
    return transform(ramp, torch.Generator().manual_seed(0))[:, 0].numpy()


def test_monotone_curves_rise_from_black_to_white() -> None:
    found = curves(1.0, 0.0)
    assert (np.diff(found, axis=1) >= -1e-6).all()
    np.testing.assert_allclose(found[:, [0, -1]], [[0, 1]] * len(found), atol=1e-5)
    np.testing.assert_allclose(curves(1.0, 1.0), 1 - found, atol=1e-6)
    assert found.std(axis=0).max() > 0.1


def test_curve_is_the_bezier_curve_of_its_points() -> None:
    """A free curve whose first coordinate rises is (x(t), y(t)) itself."""
    points = torch.tensor([[[0.2, 0.9], [0.6, 0.1]]])
    off = torch.zeros(1, dtype=torch.bool)
    table = RandBezierIntensity._tables(points, off, off)[0].numpy()
    t = np.linspace(0, 1, 2001)[:, None]
    p = np.array([[0, 0], [0.2, 0.9], [0.6, 0.1], [1, 1]])
    b = (1 - t) ** 3 * p[0] + 3 * t * (1 - t) ** 2 * p[1] + 3 * t**2 * (1 - t) * p[2] + t**3 * p[3]
    np.testing.assert_allclose(table, np.interp(np.linspace(0, 1, LEVELS), b[:, 0], b[:, 1]), atol=2e-3)


def test_eight_bit_images_map_by_a_table() -> None:
    """Equal values stay equal, whatever the number of axes, and every image has a curve of its own."""
    x = torch.randint(0, 256, (4, 1, 6, 5, 3), generator=torch.Generator().manual_seed(1)) / 255
    found = RandBezierIntensity(1.0)(x, torch.Generator().manual_seed(2))
    assert (found >= 0).all()
    assert (found <= 1).all()
    for n in range(4):
        pairs = dict(zip(x[n].flatten().tolist(), found[n].flatten().tolist()))
        assert all(pairs[v] == w for v, w in zip(x[n].flatten().tolist(), found[n].flatten().tolist()))
    same = x[:1].expand(4, -1, -1, -1, -1)
    assert len({tuple(f.flatten().tolist()) for f in RandBezierIntensity(1.0)(same)}) == 4


def test_bytes_are_mapped_as_floats_are() -> None:
    """To the nearest of 256 levels; images left alone keep theirs."""
    x = torch.randint(0, 256, (60, 1, 6, 5), generator=torch.Generator().manual_seed(1)).byte()
    found = RandBezierIntensity(0.5)(x, torch.Generator().manual_seed(2))
    expected = RandBezierIntensity(0.5)(x / 255, torch.Generator().manual_seed(2)) * 255
    assert found.dtype == torch.uint8
    assert (found - expected).abs().max() <= 0.502
    assert 10 < (found != x).flatten(1).any(dim=1).sum() < 50


def test_probability_and_seed() -> None:
    x = torch.rand(300, 1, 4)
    assert torch.equal(RandBezierIntensity(0.0)(x), x)
    first, second = (RandBezierIntensity(0.5)(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert 0.4 < (first != x).flatten(1).any(dim=1).float().mean() < 0.6
    with pytest.raises(ValueError, match="probability"):
        RandBezierIntensity(prob=1.5)
