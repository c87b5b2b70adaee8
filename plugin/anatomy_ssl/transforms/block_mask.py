"""Masks of whole blocks of voxels, for networks that restore what they do not see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.utils import ensure_tuple_rep

__all__ = ["block_mask"]


def block_mask(
    number: int,
    spatial_size: Sequence[int],
    block_size: Sequence[int] | int,
    ratio: float,
    generator: torch.Generator | None = None,
    device: str | torch.device | None = None,
) -> torch.Tensor:
    """Draw masks of blocks, each with the same number of masked blocks.

    Blocks are drawn along all axes (Jiang et al. 2023, arXiv 2302.05615, mask 75% of 16^3-voxel blocks); a block that
    is as long as the view along an axis masks columns. Where blocks do not divide the view, the last ones are cut.

    Args:
        number: of masks.
        spatial_size: voxels of a view.
        block_size: voxels of a block, one number for each axis or one for all.
        ratio: share of the blocks that are masked; rounded to whole blocks.
        generator: to draw from; None draws from torch's global state.
        device: of the result.

    Returns:
        `(number, 1, *spatial_size)` booleans, True where a voxel is masked.

    Raises:
        ValueError: if no block would be masked, or all of them.
    """
    size = ensure_tuple_rep(block_size, len(spatial_size))
    grid = [math.ceil(n / block) for n, block in zip(spatial_size, size)]
    blocks = math.prod(grid)
    masked = round(ratio * blocks)
    if not 0 < masked < blocks:
        raise ValueError(
            f"A mask_ratio of {ratio} masks {masked} of the {blocks} blocks of {tuple(size)} voxels in a view of "
            f"{tuple(spatial_size)}: give a smaller block_size, or a ratio that leaves some blocks of both kinds."
        )
    where = generator.device if generator is not None else device
    order = torch.rand(number, blocks, generator=generator, device=where).argsort(dim=1).to(device)
    mask = (order < masked).view(number, 1, *grid)
    for axis, block in enumerate(size):
        mask = mask.repeat_interleave(block, dim=axis + 2)
    return mask[(slice(None), slice(None)) + tuple(slice(n) for n in spatial_size)]
