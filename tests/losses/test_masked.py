"""MaskedReconstructionLoss: the formula, and what it does not look at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anatomy_ssl.losses.masked import MaskedReconstructionLoss


def batch(channels: int = 2) -> list[Tensor]:
    """Restored and whole views and their masks; 5 x 4 voxels."""
    rng = torch.Generator().manual_seed(0)
    images = [torch.randn(3, channels, 5, 4, generator=rng) for _ in range(4)]
    return [*images, *(torch.rand(3, 1, 5, 4, generator=rng) < share for share in (0.75, 0.3))]


def test_masked_equals_the_formula() -> None:
    """The mean over the masked voxels of both views together, so that voxels weigh the same."""
    r1, r2, w1, w2, m1, m2 = batch()
    errors = [
        float((r[n, c, i, j] - w[n, c, i, j]) ** 2)
        for r, w, m in ((r1, w1, m1), (r2, w2, m2))
        for n in range(3) for c in range(2) for i in range(5) for j in range(4)
        if m[n, 0, i, j]
    ]  # fmt: skip
    assert len(errors) == 2 * int(m1.sum() + m2.sum())
    assert float(MaskedReconstructionLoss()(r1, r2, w1, w2, m1, m2)) == pytest.approx(sum(errors) / len(errors))


def test_all_is_the_mean_squared_error() -> None:
    tensors = batch()
    expected = torch.nn.functional.mse_loss(torch.cat(tensors[:2]), torch.cat(tensors[2:4]))
    torch.testing.assert_close(MaskedReconstructionLoss("all")(*tensors), expected)


def test_voxels_that_were_seen_get_no_gradient() -> None:
    tensors = batch()
    tensors[0].requires_grad_()
    MaskedReconstructionLoss()(*tensors).backward()
    assert torch.equal(tensors[0].grad != 0, tensors[4].expand(-1, 2, -1, -1))  # type: ignore[operator]


def test_nothing_masked_is_zero() -> None:
    tensors = batch()
    assert float(MaskedReconstructionLoss()(*tensors[:4], *(torch.zeros_like(mask) for mask in tensors[4:]))) == 0


def test_half_precision_is_squared_in_single() -> None:
    """300^2 overflows float16."""
    tensors = [x.half() * 0 + (300 if number < 2 else 0) for number, x in enumerate(batch()[:4])]
    assert float(MaskedReconstructionLoss()(*tensors, *batch()[4:])) == 90_000


@pytest.mark.parametrize("wrong", [0, 4])
def test_shapes_that_do_not_fit_are_told(wrong: int) -> None:
    tensors = batch()
    tensors[wrong] = tensors[wrong][:, :, :4]
    with pytest.raises(ValueError, match="need a mask"):
        MaskedReconstructionLoss()(*tensors)


def test_refuses_other_words() -> None:
    with pytest.raises(ValueError, match="'masked' or 'all'"):
        MaskedReconstructionLoss("seen")
