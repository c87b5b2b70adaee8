from __future__ import annotations

import math

import pytest
import torch
from monai.losses import ContrastiveLoss
from torch import Tensor

from anatomy_ssl.losses.ntxent import NTXentLoss
from tests.losses.largest_tensor import LargestTensor
from tests.reference.losses import ntxent_loss


def views(crops: int = 9, features: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    view_1 = torch.randn(crops, features, generator=generator, dtype=torch.float64)
    return view_1, view_1 + torch.randn(crops, features, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equals_loops_and_monai(temperature: float) -> None:
    view_1, view_2 = views()
    loss = NTXentLoss(temperature)(view_1, view_2)
    assert loss.item() == pytest.approx(ntxent_loss(view_1.tolist(), view_2.tolist(), temperature), rel=1e-9)
    torch.testing.assert_close(loss, ContrastiveLoss(temperature)(view_1, view_2), check_dtype=False)


def test_collapse_costs_the_logarithm_of_the_candidates() -> None:
    """Equal embeddings choose among 2N - 1 candidates by chance."""
    assert NTXentLoss()(torch.ones(6, 4), torch.ones(6, 4)).item() == pytest.approx(math.log(11))


def test_low_temperature_does_not_overflow() -> None:
    """Orthogonal pairs are told apart without error; exp(1 / 0.001) is infinite in float32."""
    view = torch.eye(5, requires_grad=True)
    loss = NTXentLoss(0.001)(view, view)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(torch.autograd.grad(loss, view)[0]).all()


def test_length_order_and_exchange_of_views_do_not_matter() -> None:
    view_1, view_2 = views()
    loss = NTXentLoss()
    expected = loss(view_1, view_2)
    order = torch.randperm(len(view_1), generator=torch.Generator().manual_seed(1))
    for one, two in ((view_1 * 100, view_2), (view_1[order], view_2[order]), (view_2, view_1)):
        torch.testing.assert_close(loss(one, two), expected)


def test_gradient_is_that_of_the_loss() -> None:
    inputs = [view.requires_grad_() for view in views(features=3)]
    assert torch.autograd.gradcheck(NTXentLoss(), inputs)


def test_gradient_is_finite_where_embeddings_coincide_or_vanish() -> None:
    for view in (torch.ones(6, 4), torch.zeros(6, 4)):
        view.requires_grad_()
        (gradient,) = torch.autograd.grad(NTXentLoss()(view, view), view)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    view_1, view_2 = (view.to(dtype).requires_grad_() for view in views())
    expected = NTXentLoss()(view_1.float(), view_2.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = NTXentLoss()(view_1, view_2)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert torch.isfinite(torch.autograd.grad(inside, view_1)[0]).all()


def test_memory_is_one_similarity_matrix() -> None:
    """Nothing larger than (2N, 2N) is made: 16.8 MB at N = F = 1024, where (2N, 2N, F) would be 17 GB."""
    view_1, view_2 = (view.requires_grad_() for view in views(crops=32, features=32))
    with LargestTensor() as largest:
        NTXentLoss()(view_1, view_2).backward()
    assert largest.elements == 64**2


def test_nan_is_not_hidden() -> None:
    view_1, view_2 = views()
    view_1[0, 0] = float("nan")
    assert torch.isnan(NTXentLoss()(view_1, view_2))


@pytest.mark.parametrize(
    ("view_1", "view_2", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(3, 3), "one shape"),
        (torch.zeros(12), torch.zeros(12), "`view_1`"),
        (torch.zeros(1, 3), torch.zeros(1, 3), "at least two crops"),
    ],
)
def test_bad_input_is_named(view_1: Tensor, view_2: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NTXentLoss()(view_1, view_2)


def test_bad_temperature_is_named() -> None:
    with pytest.raises(ValueError, match="temperature"):
        NTXentLoss(0.0)
