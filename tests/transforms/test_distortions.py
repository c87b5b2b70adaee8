from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from anatomy_ssl.transforms.distortions import (
    RandCoarseDropout,
    RandCoarseShuffle,
    RandomViews,
    box_mask,
    random_boxes,
)

DISTORTIONS: dict[str, Callable[[], nn.Module]] = {
    "dropout": RandCoarseDropout,
    "noise": lambda: RandCoarseDropout(fill_value=None),
    "shuffle": lambda: RandCoarseShuffle(prob=1.0),
    "windows": lambda: RandCoarseShuffle(size=8, prob=1.0, min_size=1),
    "views": lambda: nn.Sequential(RandCoarseDropout(), RandCoarseShuffle()),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crops(count: int = 6, channels: int = 2, roi: tuple[int, ...] = (16, 12, 20)) -> torch.Tensor:
    """Values 1 to 2, so that a voxel filled with 0 can be told."""
    return 1 + torch.rand(count, channels, *roi, generator=seeded(9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("roi", [(16, 12, 20), (16, 24)])
@pytest.mark.parametrize("name", DISTORTIONS)
def test_shape_type_and_input_are_kept_and_the_seed_decides(
    name: str, roi: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = (crops(roi=roi) * 100).to(dtype)
    before = x.clone()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(DISTORTIONS[name]()(x))
    assert torch.equal(x, before)
    assert results[0].shape == x.shape
    assert results[0].dtype == dtype
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", ["dropout", "noise", "shuffle", "windows"])
def test_a_generator_replaces_the_global_state(name: str) -> None:
    x, distortion = crops(), DISTORTIONS[name]()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = distortion(x, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(first, distortion(x, generator=seeded(3)))


@pytest.mark.parametrize("roi", [(16, 12, 20), (16, 24)])
@pytest.mark.parametrize("name", DISTORTIONS)
def test_nothing_depends_on_values_so_nothing_waits_for_the_device(name: str, roi: tuple[int, ...]) -> None:
    """On the meta device there are no values: reading one on the host would raise."""
    x = torch.empty(3, 1, *roi, device="meta")
    assert DISTORTIONS[name]()(x).shape == x.shape


@pytest.mark.parametrize("name", ["dropout", "shuffle"])
def test_equal_crops_of_a_batch_are_distorted_differently(name: str) -> None:
    x = crops(1).expand(5, -1, -1, -1, -1)
    changed = (DISTORTIONS[name]()(x, generator=seeded()) != x)[:, 0].flatten(1)
    assert len({tuple(row.nonzero().flatten().tolist()) for row in changed}) == 5


def boxes(count: int = 4000, holes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.zeros(count, 1, 10, 30)
    low, high = torch.tensor([1.0, 3.0]).expand(count, -1), torch.tensor([3.0, 10.0]).expand(count, -1)
    return random_boxes(x, holes, low, high, seeded())


def test_boxes_lie_inside_and_their_sides_are_uniform() -> None:
    start, stop = boxes()
    assert (start >= 0).all()
    assert (stop <= torch.tensor([10, 30])).all()
    for axis, sides in enumerate([range(1, 4), range(3, 11)]):
        side = (stop - start)[..., axis].flatten()
        share = torch.bincount(side, minlength=max(sides) + 1)[min(sides) :] / len(side)
        assert len(share) == len(sides)
        torch.testing.assert_close(share, torch.full((len(sides),), 1 / len(sides)), atol=0.015, rtol=0)


def test_box_positions_are_uniform_for_every_side_and_holes_are_independent() -> None:
    start, stop = boxes()
    first = start[..., 0][(stop - start)[..., 0] == 3]
    share = torch.bincount(first, minlength=8) / len(first)  # a side of 3 has 8 places on 10 voxels
    torch.testing.assert_close(share, torch.full((8,), 1 / 8), atol=0.02, rtol=0)
    correlation = torch.corrcoef(torch.cat([start.flatten(1), (stop - start).flatten(1)], dim=1).float().T)
    between = correlation[:6, :6] - torch.diag(correlation.diagonal()[:6])
    assert between.abs().max() < 0.06


def test_box_mask_equals_slices() -> None:
    start, stop = boxes(count=20)
    expected = torch.zeros(20, 10, 30, dtype=torch.bool)
    for n in range(20):
        for a, b in zip(start[n].tolist(), stop[n].tolist()):
            expected[n, a[0] : b[0], a[1] : b[1]] = True
    assert torch.equal(box_mask(start, stop, (10, 30)), expected)


def test_dropout_fills_boxes_of_all_channels_and_changes_nothing_else() -> None:
    x = crops()
    y = RandCoarseDropout(fill_value=-3.0)(x, generator=seeded())
    dropped = y == -3
    assert torch.equal(y[~dropped], x[~dropped])
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.flatten(1).any(1).all()


def test_one_hole_is_one_box_of_the_given_sides() -> None:
    x = crops(200, 1, (40, 20))
    for keep in (0.0, 1.0):
        distortion = RandCoarseDropout(holes=1, size=(0.1, 0.33), keep_size=(0.1, 0.66), keep_prob=keep)
        filled = distortion(x, generator=seeded())[:, 0] == 0
        box = ~filled if keep else filled
        rows, columns = box.any(2).sum(1), box.any(1).sum(1)
        assert torch.equal(box.sum((1, 2)), rows * columns)
        part = 0.66 if keep else 0.33
        assert (rows.min(), rows.max()) == (4, round(part * 40))
        assert (columns.min(), columns.max()) == (2, round(part * 20))


def expected_coverage(part: tuple[float, float], length: int, axes: int, holes: int) -> float:
    """Share of voxels in at least one box: P(voxel in one box) is a product over axes, boxes are independent."""
    sides = range(round(part[0] * length), round(part[1] * length) + 1)
    line = torch.zeros(length, dtype=torch.float64)
    for side in sides:
        for start in range(length - side + 1):
            line[start : start + side] += 1 / (len(sides) * (length - side + 1))
    inside = line
    for _ in range(axes - 1):
        inside = inside[..., None] * line
    return float((1 - (1 - inside) ** holes).mean())


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_the_dropped_share_is_the_one_specified(keep: float) -> None:
    x = crops(1500, 1, (16, 16, 16))
    share = (RandCoarseDropout(keep_prob=keep)(x, generator=seeded()) == 0).float().mean().item()
    covered = expected_coverage((0.1, 0.66) if keep else (0.1, 0.33), 16, 3, 6)
    assert share == pytest.approx(1 - covered if keep else covered, rel=0.04)


def test_probabilities_are_per_crop() -> None:
    x = crops(2000, 1, (8, 8))
    changed = (RandCoarseDropout(prob=0.3)(x, generator=seeded()) != x).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.04)
    shuffled = (RandCoarseShuffle(size=4)(x, generator=seeded()) != x).flatten(1).any(1)
    assert shuffled.float().mean() == pytest.approx(0.8, abs=0.04)
    keeping = RandCoarseDropout(holes=1, size=(0.2, 0.2), keep_size=(0.2, 0.2), keep_prob=0.25)(x, generator=seeded())
    assert ((keeping == 0).float().flatten(1).mean(1) > 0.5).float().mean() == pytest.approx(0.25, abs=0.04)


def test_noise_stays_between_each_crops_values() -> None:
    x = crops() * torch.arange(1, 7).view(-1, 1, 1, 1, 1)
    y = RandCoarseDropout(fill_value=None)(x, generator=seeded())
    assert (y.flatten(1).amin(1) >= x.flatten(1).amin(1)).all()
    assert (y.flatten(1).amax(1) <= x.flatten(1).amax(1)).all()
    for before, after in zip(x, y):
        noise = (after[after != before] - before.min()) / (before.max() - before.min())
        deciles = torch.histc(noise, bins=10, min=0, max=1) / len(noise)
        torch.testing.assert_close(deciles, torch.full((10,), 0.1), atol=0.03, rtol=0)


def test_noise_of_bytes_is_uniform_between_each_crops_values() -> None:
    x = torch.full((3, 1, 64, 64), 7, dtype=torch.uint8)
    x[0, :, 0, 0], x[1, :, 0, 0], x[2, :, 0, 0] = 255, 16, 7
    x[0, :, 0, 1] = 0
    distortion = RandCoarseDropout(holes=1, keep_size=(0.1, 0.1), keep_prob=1.0, fill_value=None)
    y = distortion(x, generator=seeded())
    assert y.dtype == torch.uint8
    for row, (low, high) in enumerate(((0, 255), (7, 16), (7, 7))):
        counts = torch.bincount(y[row].flatten().long(), minlength=256).float()
        assert counts[:low].sum() + counts[high + 1 :].sum() == 0
        levels = counts[low : high + 1].unflatten(0, (min(4, high - low + 1), -1)) if high != 16 else counts[7:17]
        share = levels.flatten(1).sum(1) / counts.sum() if levels.ndim == 2 else levels / counts.sum()
        torch.testing.assert_close(share, torch.full_like(share, 1 / len(share)), atol=0.03, rtol=0)
    assert torch.equal(y, distortion(x, generator=seeded()))


@pytest.mark.parametrize("roi", [(16, 12, 20), (16, 24)])
@pytest.mark.parametrize("size", [6, 40])
def test_shuffling_keeps_every_channels_values(size: int, roi: tuple[int, ...]) -> None:
    x = crops(roi=roi)
    y = RandCoarseShuffle(size=size, prob=1.0)(x, generator=seeded())
    assert torch.equal(x.flatten(2).sort(2).values, y.flatten(2).sort(2).values)
    assert not torch.equal(x, y)


def test_one_shuffled_hole_is_a_box_and_channels_are_shuffled_apart() -> None:
    x = crops(50, 1).expand(-1, 2, -1, -1, -1)
    y = RandCoarseShuffle(holes=1, size=(4, 3, 5), prob=1.0)(x, generator=seeded())
    changed = y != x
    for channel in range(2):
        for axis, side in enumerate((4, 3, 5)):
            others = tuple(i for i in (1, 2, 3) if i != axis + 1)
            places = changed[:, channel].any(dim=others[1]).any(dim=others[0])
            extent = torch.tensor([row.nonzero().max() - row.nonzero().min() + 1 for row in places])
            assert (extent == side).all()
    assert (y[:, 0] != y[:, 1]).flatten(1).any(1).all()
    assert changed.float().flatten(1).mean(1).max() <= 4 * 3 * 5 / x[0, 0].numel()


def test_every_order_of_a_hole_is_equally_likely() -> None:
    x = torch.arange(3.0).expand(6000, 1, 1, 3)
    y = RandCoarseShuffle(holes=1, size=(1, 3), prob=1.0)(x, generator=seeded())
    _, counts = y.flatten(1).unique(dim=0, return_counts=True)
    torch.testing.assert_close(counts / 6000, torch.full((6,), 1 / 6), atol=0.02, rtol=0)


@pytest.mark.parametrize(("size", "sides"), [(5, [range(1, 6)] * 2), ((3, 7), [range(2, 4), range(2, 8)])])
def test_shuffled_holes_draw_their_sides(size: int | tuple[int, int], sides: list[range]) -> None:
    shuffle = RandCoarseShuffle(holes=1, size=size, prob=1.0, min_size=sides[0].start)
    generator = seeded()
    drawn = torch.stack([shuffle._draw_sides((30, 40), generator)[0] for _ in range(2000)])
    for axis, expected in enumerate(sides):
        share = torch.bincount(drawn[:, axis], minlength=expected[-1] + 1)[expected[0] :] / len(drawn)
        torch.testing.assert_close(share, torch.full((len(expected),), 1 / len(expected)), atol=0.05, rtol=0)


def test_shuffled_boxes_of_one_crop_differ_in_size() -> None:
    x = torch.arange(64.0 * 64).view(1, 1, 64, 64).expand(64, -1, -1, -1)
    shuffle = RandCoarseShuffle(holes=1, size=12, prob=1.0, min_size=4)
    generator, extents = seeded(), set()
    for _ in range(30):
        changed = (shuffle(x, generator=generator) != x)[:, 0]
        rows, columns = (changed.any(axis).sum(1) for axis in (2, 1))
        assert min(rows.min(), columns.min()) >= 2
        assert max(rows.max(), columns.max()) <= 12
        extents.add((int(rows.max()), int(columns.max())))
    assert len(extents) > 15
    many = RandCoarseShuffle(holes=40, size=12, prob=1.0, min_size=1)
    assert len({tuple(sides) for sides in many._draw_sides((64, 64), seeded()).tolist()}) > 20
    assert torch.equal(many(x, generator=seeded(4)), many(x, generator=seeded(4)))


def test_views_are_independent_and_in_order() -> None:
    x = crops(8, 1)
    views = RandomViews([RandCoarseDropout(), RandCoarseShuffle()], num_views=3)(x, generator=seeded())
    assert [view.shape for view in views] == [x.shape] * 3
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])
    for view in views:  # a voxel that dropout left alone, and that shuffling did not move, is the crop's own
        assert ((view == x) | (view == 0)).float().flatten(1).mean(1).min() > 0.5
    again = RandomViews([RandCoarseDropout(), RandCoarseShuffle()], num_views=3)(x, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(views, again))


def test_views_take_any_module() -> None:
    x = crops(2, 1)
    assert all((view == 0).all() for view in RandomViews([nn.Threshold(9.0, 0.0)])(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandCoarseDropout(holes=0), "holes"),
        (lambda: RandCoarseDropout(size=(0.4, 0.3)), "size"),
        (lambda: RandCoarseDropout(keep_size=(0.4, 1.3)), "keep_size"),
        (lambda: RandCoarseDropout(keep_prob=1.5), "keep_prob"),
        (lambda: RandCoarseShuffle(size=0), "size"),
        (lambda: RandCoarseShuffle(size=(4, 2), min_size=3), "min_size"),
        (lambda: RandCoarseShuffle(min_size=0), "min_size"),
        (lambda: RandCoarseShuffle(prob=-0.1), "prob"),
        (lambda: RandomViews([], num_views=0), "num_views"),
        (lambda: RandCoarseShuffle(size=(3, 3))(crops()), "2 axes, but the crops have 3"),
        (lambda: RandCoarseDropout()(torch.zeros(2, 1, 8)), "two or three spatial axes"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
