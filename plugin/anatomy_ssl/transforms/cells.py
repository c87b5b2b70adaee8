"""Batches of views taken apart into the cells of a grid, and the pretext tasks on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["RandBezierIntensity", "permute_cells"]

LEVELS = 256  # of the intensity curve: exact for 8-bit images


def permute_cells(x: torch.Tensor, order: torch.Tensor, grid_size: Sequence[int]) -> torch.Tensor:
    """Show other cells at the places of a grid: place j of the result shows cell `order[:, j]`.

    Args:
        x: `(N, C, *spatial)`, a multiple of the grid along every axis.
        order: `(N, T)` int64, numbers of cells, last axis fastest.
        grid_size: cells along each axis.

    Returns:
        `(N, C, *spatial)`.

    Raises:
        ValueError: if the grid does not divide the image, or the order is of another grid.
    """
    grid, spatial = tuple(grid_size), tuple(x.shape[2:])
    if len(grid) != len(spatial) or any(size % n for size, n in zip(spatial, grid)):
        raise ValueError(f"a grid of {grid} cells does not divide views of {spatial} voxels")
    dims, cells = len(grid), math.prod(grid)
    if order.shape != (len(x), cells):
        raise ValueError(
            f"order is {tuple(order.shape)}, a batch of {len(x)} with {grid} cells needs {(len(x), cells)}"
        )
    split = [length for n, size in zip(grid, spatial) for length in (n, size // n)]
    # (N, C, g1, c1, g2, c2, ..) -> (N, g1, g2, .., C, c1, c2, ..)
    axes = [0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2)]
    apart = x.reshape(*x.shape[:2], *split).permute(axes)
    first = torch.arange(len(x), device=x.device)[:, None] * cells  # each image's first cell in the batch
    moved = apart.flatten(0, dims).index_select(0, (order + first).flatten()).reshape(apart.shape)
    back = [axes.index(axis) for axis in range(len(axes))]
    return moved.permute(back).reshape(x.shape)


class RandBezierIntensity(nn.Module):
    """Map intensities by a random cubic Bezier curve (Models Genesis, Zhou et al. 2019, arXiv 1908.06912, section 2).

    Control points (0, 0), two uniform in the unit square, and (1, 1). The curve is a monotone one (both coordinates
    sorted) or a free one (by its first coordinate), and may be turned upside down. One table of 256 levels per image,
    read with linear interpolation, or as it is where the images are bytes; on the batch's device.

    Args:
        prob: probability, per image, of doing anything.
        monotone_prob: probability of a monotone curve.
        invert_prob: probability of turning it upside down.
    """

    def __init__(self, prob: float = 0.9, monotone_prob: float = 0.5, invert_prob: float = 0.25) -> None:
        super().__init__()
        for name, value in {"prob": prob, "monotone_prob": monotone_prob, "invert_prob": invert_prob}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability, got {value}")
        self.prob, self.monotone_prob, self.invert_prob = prob, monotone_prob, invert_prob

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Distort a batch.

        Args:
            x: `(N, C, *spatial)`, intensities from 0 to 1; what is beyond counts as the end. Or uint8, 0 to 255. Not
                changed.
            generator: source of random numbers; None for torch's global state.

        Returns:
            `(N, C, *spatial)` of the same type, 0 to 1 (or 255) in the images that were changed.
        """

        def draw(*shape: int) -> torch.Tensor:
            device = x.device if generator is None else generator.device
            return torch.rand(shape, generator=generator, device=device).to(x.device)

        tables = self._tables(draw(len(x), 2, 2), draw(len(x)) < self.monotone_prob, draw(len(x)) < self.invert_prob)
        active = draw(len(x)) < self.prob
        if x.dtype == torch.uint8:
            same = torch.arange(LEVELS, device=x.device, dtype=torch.uint8)
            levels = torch.where(active[:, None], (tables * (LEVELS - 1)).round().to(torch.uint8), same)
            index = x.flatten(1).int().add_(torch.arange(len(x), device=x.device, dtype=torch.int32)[:, None] * LEVELS)
            return levels.flatten().index_select(0, index.flatten()).reshape(x.shape)
        level = x.flatten(1).float().clamp(0, 1) * (LEVELS - 1)
        below = level.floor().clamp(max=LEVELS - 2).long()
        low, high = tables.gather(1, below), tables.gather(1, below + 1)
        mapped = torch.lerp(low, high, level - below).reshape(x.shape).to(x.dtype)
        return torch.where(active.view(-1, *[1] * (x.ndim - 1)), mapped, x)

    @staticmethod
    def _tables(points: torch.Tensor, monotone: torch.Tensor, inverted: torch.Tensor) -> torch.Tensor:
        """Curves `(N, LEVELS)` at equal steps of intensity, from inner control points `(N, 2, 2)`."""
        t = torch.linspace(0, 1, 4 * LEVELS, device=points.device)
        a, b, c = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3  # weights of the points, that of (0, 0) left out
        curve = points[:, 0, :, None] * a + points[:, 1, :, None] * b + c  # (N, 2, 4 * LEVELS)
        xs, order = curve[:, 0].sort(dim=1)
        ys = torch.where(monotone[:, None], curve[:, 1].sort(dim=1).values, curve[:, 1].gather(1, order))
        grid = torch.linspace(0, 1, LEVELS, device=points.device).expand(len(points), -1).contiguous()
        right = torch.searchsorted(xs.contiguous(), grid).clamp(1, xs.shape[1] - 1)
        x0, x1 = xs.gather(1, right - 1), xs.gather(1, right)
        y0, y1 = ys.gather(1, right - 1), ys.gather(1, right)
        table = torch.lerp(y0, y1, ((grid - x0) / (x1 - x0).clamp(min=1e-9)).clamp(0, 1))
        return torch.where(inverted[:, None], 1 - table, table)
