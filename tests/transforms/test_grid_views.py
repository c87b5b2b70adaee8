"""Grid-aligned views: cells that are said to match show the same voxels, for every pair of starts."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms.grid_views import RandGridViewsd, match_cells

CASES = [((4, 3), (2, 3), (2, 4)), ((14, 14), (1, 1), (4, 4)), ((3, 2, 4), (2, 3, 1), (1, 2, 2)), ((5,), (2,), (3,))]


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """An image `(1, *shape)` in which every voxel has a value of its own."""
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape)


def cells(view: torch.Tensor, grid: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    """The cells of a view `(1, *grid * size)` as rows `(T, voxels)`, last axis fastest, by plain loops."""
    rows = []
    for place in product(*[range(n) for n in grid]):
        box = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, size))
        rows.append(view[(slice(None), *box)].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize(("grid", "size", "slack"), CASES)
def test_every_pair_of_starts_matches_what_is_the_same(
    grid: tuple[int, ...], size: tuple[int, ...], slack: tuple[int, ...]
) -> None:
    """Exhaustively: the match is the cell with equal voxels, and -1 where there is none."""
    transform = RandGridViewsd("image", grid, size, slack)
    image = numbered(transform.image_size)
    views = {}
    for start in product(*[range(s + 1) for s in slack]):
        box = tuple(slice(b * c, (b + n) * c) for b, n, c in zip(start, grid, size))
        views[start] = cells(image[(slice(None), *box)], grid, size)
    for a, b in product(views, views):
        same = (views[a][:, None] == views[b][None]).all(dim=2)  # (T, T)
        expected = torch.where(same.any(dim=1), same.int().argmax(dim=1), -1)
        found = match_cells(torch.tensor([a]), torch.tensor([b]), grid)
        assert torch.equal(found[0], expected)


@pytest.mark.parametrize(("grid", "size", "slack"), CASES)
def test_views_are_boxes_of_the_image_that_match(
    grid: tuple[int, ...], size: tuple[int, ...], slack: tuple[int, ...]
) -> None:
    transform = RandGridViewsd(["image", "mask"], grid, size, slack).set_random_state(3)
    image = numbered(tuple(n + 3 for n in transform.image_size))
    starts, firsts = set(), set()
    for _ in range(60):
        item = transform({"image": image, "mask": image + 1})
        assert "image" not in item
        assert torch.equal(item["mask_1"], item["image_1"] + 1)
        first, second = (cells(item[f"image_{v}"], grid, size) for v in (1, 2))
        match = match_cells(item["cell_1"][None], item["cell_2"][None], grid)[0]
        shown = match >= 0
        assert torch.equal(first[shown], second[match[shown]])
        assert not torch.isin(first[~shown], second).any()
        starts.add(tuple(item["cell_1"].tolist()))
        firsts.add(float(first[0, 0]))
    assert all({s[axis] for s in starts} == set(range(n + 1)) for axis, n in enumerate(slack))
    assert len(firsts) > 5 or int(np.prod(size)) == 1


@pytest.mark.parametrize("random_center", [False, True])
def test_place_of_the_lattice(random_center: bool) -> None:
    """In the middle of a larger image, or anywhere in it, up to the edges."""
    transform = RandGridViewsd("image", (2,), 2, 1, random_center=random_center).set_random_state(0)
    image = numbered((28,))  # the lattice needs 8
    seen = torch.cat([transform({"image": image})[f"image_{v}"].flatten() for _ in range(500) for v in (1, 2)])
    assert (float(seen.min()), float(seen.max())) == ((0, 26) if random_center else (10, 16))


def test_seeded() -> None:
    image = numbered((40, 40))
    runs = [RandGridViewsd("image", (4, 4), 4).set_random_state(7)({"image": image}) for _ in range(2)]
    assert torch.equal(runs[0]["image_2"], runs[1]["image_2"])


def test_a_batch_is_matched_item_by_item() -> None:
    starts = torch.randint(0, 5, (2, 20, 2), generator=torch.Generator().manual_seed(0))
    whole = match_cells(starts[0], starts[1], (14, 14))
    for n in range(20):
        assert torch.equal(whole[n : n + 1], match_cells(starts[0, n : n + 1], starts[1, n : n + 1], (14, 14)))


def test_paper_sizes() -> None:
    """608 pixels, two crops of 448 with at least half of their cells in common."""
    transform = RandGridViewsd("image", (14, 14), 32, 4).set_random_state(0)
    assert transform.image_size == (608, 608)
    share = [
        (match_cells(torch.tensor([a]), torch.tensor([b]), (14, 14)) >= 0).float().mean()
        for a, b in product(product(range(5), range(5)), repeat=2)
    ]
    assert min(share) == pytest.approx(100 / 196)
    assert float(np.mean(share)) == pytest.approx(0.78, abs=0.01)


def test_too_small_an_image_is_named() -> None:
    with pytest.raises(BadImageError, match=r"a\.png: is smaller \(39, 40\)|a\.png: is smaller \(\(39, 40\)"):
        RandGridViewsd("image", (4, 4), 4, 5)({"image": numbered((39, 40)), "source": "a.png"})


@pytest.mark.parametrize("wrong", [{"grid_size": (0, 2)}, {"cell_size": 0}, {"slack": -1}, {"num_views": 0}])
def test_impossible_sizes(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        RandGridViewsd("image", **{"grid_size": (2, 2), "cell_size": 2, **wrong})  # type: ignore[arg-type]
