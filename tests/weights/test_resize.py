"""Inflation keeps responses, interpolation keeps a smooth function sampled on another grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

from anatomy_ssl.weights.resize import inflate, interpolate_bias, interpolate_positions


@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_channels_give_the_response_of_one(count: int) -> None:
    weight, x = torch.randn(5, 1, 3, 3, 3), torch.randn(2, 1, 8, 8, 8)
    wide = inflate(weight, (5, count, 3, 3, 3))
    torch.testing.assert_close(F.conv3d(x.repeat(1, count, 1, 1, 1), wide), F.conv3d(x, weight), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wide.mean(), weight.mean() / count)
    torch.testing.assert_close(inflate(wide, weight.shape), weight)


def test_a_third_axis_keeps_the_response_to_constant_slices() -> None:
    """Channels and axis at once; the new axis is the last."""
    weight, x = torch.randn(5, 1, 3, 5), torch.randn(2, 1, 9, 9)
    deep = inflate(weight, (5, 2, 3, 5, 4))
    assert torch.equal(deep[..., 0], deep[..., 3])
    response = F.conv3d(x.repeat(1, 2, 1, 1)[..., None].expand(-1, -1, -1, -1, 6), deep)
    torch.testing.assert_close(response, F.conv2d(x, weight)[..., None].expand_as(response), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (6, 2, 3, 3), (5, 2, 5, 5), (5, 2, 3, 3, 3, 3), (5, 2, 9), (5, 2, 3)])
def test_other_changes_are_refused(shape: Sequence[int]) -> None:
    with pytest.raises(ValueError, match="cannot be inflated"):
        inflate(torch.randn(5, 2, 3, 3), shape)


def smooth(*axes: torch.Tensor) -> torch.Tensor:
    """A slow function of coordinates from -1 to 1, two values at each point: `(*grid, 2)`."""
    total = sum(torch.sin(1.2 * axis + shift) for shift, axis in enumerate(torch.meshgrid(*axes, indexing="ij")))
    return torch.stack([torch.as_tensor(total), torch.as_tensor(total) * 0.5 + 1], dim=-1)


def centres(count: int) -> torch.Tensor:
    """Of `count` equal cells between -1 and 1."""
    return (torch.arange(count) + 0.5) / count * 2 - 1


def ends(count: int) -> torch.Tensor:
    """From -1 to 1, both included."""
    return torch.linspace(-1, 1, count)


Sampler = Callable[[int], torch.Tensor]


def sampled(at: Sampler, grid: Sequence[int]) -> torch.Tensor:
    """The smooth function on a grid, `(*grid, 2)`."""
    return smooth(*(at(size) for size in grid))


@pytest.mark.parametrize(("old", "new"), [((14, 14), (10, 18)), ((12, 12, 12), (16, 12, 8)), ((8, 8), (16, 16))])
def test_position_embeddings_follow_a_smooth_function(old: Sequence[int], new: Sequence[int]) -> None:
    """Away from the border, beyond whose outermost centres nothing is known."""
    result = interpolate_positions(sampled(centres, old).reshape(1, -1, 2), old, new)
    expected = sampled(centres, new)
    result = result.reshape(expected.shape)
    inner = (slice(3, -3),) * len(new)
    torch.testing.assert_close(result[inner], expected[inner], atol=0.03, rtol=0)
    torch.testing.assert_close(result.mean(), expected.mean(), atol=0.01, rtol=0)


@pytest.mark.parametrize(("old", "new"), [((7, 7), (10, 10)), ((7, 7, 7), (5, 6, 7)), ((4, 4, 4), (7, 7, 7))])
def test_bias_tables_follow_a_smooth_function(old: Sequence[int], new: Sequence[int]) -> None:
    """To the border; offset zero stays in the middle, heads stay apart."""
    sizes, wanted = ([2 * size - 1 for size in window] for window in (old, new))
    result = interpolate_bias(sampled(ends, sizes).reshape(-1, 2), old, new).reshape(*wanted, 2)
    torch.testing.assert_close(result, sampled(ends, wanted), atol=0.06, rtol=0)
    middle = tuple(size // 2 for size in wanted)
    torch.testing.assert_close(result[middle], sampled(ends, sizes)[tuple(size // 2 for size in sizes)])
    torch.testing.assert_close(result.mean(), sampled(ends, wanted).mean(), atol=0.02, rtol=0)


def test_equal_sizes_are_bit_equal() -> None:
    embeddings, table = torch.randn(1, 60, 4), torch.randn(7 * 5 * 3, 4)
    assert torch.equal(interpolate_positions(embeddings, (3, 4, 5), (3, 4, 5)), embeddings)
    assert torch.equal(interpolate_bias(table, (4, 3, 2), (4, 3, 2)), table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_constants_stay_and_types_too(dtype: torch.dtype) -> None:
    for dims in (2, 3):
        result = interpolate_positions(torch.full((1, 4**dims, 3), 0.75, dtype=dtype), [4] * dims, [7] * dims)
        assert result.dtype == dtype
        torch.testing.assert_close(result, torch.full_like(result, 0.75))


def test_from_two_to_three_axes_values_are_repeated_along_the_last() -> None:
    embeddings, table = torch.randn(1, 9, 2), torch.randn(25, 2)
    deep = interpolate_positions(embeddings, (3, 3), (3, 3, 4)).reshape(3, 3, 4, 2)
    assert torch.equal(deep, embeddings.reshape(3, 3, 1, 2).expand(3, 3, 4, 2))
    deep = interpolate_bias(table, (3, 3), (3, 3, 2)).reshape(5, 5, 3, 2)
    assert torch.equal(deep, table.reshape(5, 5, 1, 2).expand(5, 5, 3, 2))
