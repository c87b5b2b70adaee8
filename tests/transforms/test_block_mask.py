"""Masks hide whole blocks, the share that was asked for, everywhere alike."""

from __future__ import annotations

import pytest
import torch

from anatomy_ssl.transforms.block_mask import block_mask


def test_whole_blocks_and_the_exact_share() -> None:
    mask = block_mask(6, (32, 32, 16), 8, 0.75, torch.Generator().manual_seed(0))
    assert (mask.shape, mask.dtype) == ((6, 1, 32, 32, 16), torch.bool)
    blocks = mask.view(6, 4, 8, 4, 8, 2, 8).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).float()
    assert set(blocks.mean(dim=4).flatten().tolist()) == {0.0, 1.0}
    assert blocks[..., 0].flatten(1).sum(dim=1).tolist() == [24.0] * 6


def test_every_block_is_masked_equally_often() -> None:
    """Also along the last axis: blocks, not columns."""
    mask = block_mask(4000, (4, 4, 4), 2, 0.5, torch.Generator().manual_seed(1))
    shares = mask.float().mean(dim=0)
    assert (shares - 0.5).abs().max() < 0.04
    assert (mask[..., 0] != mask[..., 3]).any()


def test_a_block_as_long_as_the_view_masks_columns() -> None:
    mask = block_mask(3, (8, 8, 8), (4, 4, 8), 0.5, torch.Generator().manual_seed(1))
    assert (mask == mask[..., :1]).all()


def test_blocks_that_do_not_divide_the_view_are_cut() -> None:
    mask = block_mask(2, (10, 7), 4, 0.5, torch.Generator().manual_seed(1))
    assert mask.shape == (2, 1, 10, 7)
    assert (mask[..., 8:, :4] == mask[..., 8:9, :1]).all()


def test_the_generator_decides() -> None:
    first, again, other = (block_mask(4, (32, 32), 4, 0.6, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("block", "ratio"), [(32, 0.75), (16, 0.99), (16, 0.01), (16, 1.0), (16, 0.0)])
def test_masks_of_all_or_nothing_are_refused(block: int, ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        block_mask(1, (32, 32), block, ratio)
