from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anatomy_ssl.losses.barlow import BarlowTwinsLoss
from tests.reference.losses import barlow_loss


def views(crops: int = 12, features: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    view_1 = torch.randn(crops, features, generator=generator, dtype=torch.float64)
    return view_1, view_1 + 0.5 * torch.randn(crops, features, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0051, 0.3])
@pytest.mark.parametrize("features", [1, 5, 20])
def test_equals_loops(weight: float, features: int) -> None:
    view_1, view_2 = views(features=features)
    expected = barlow_loss(view_1.tolist(), view_2.tolist(), weight, 1e-3)
    assert BarlowTwinsLoss(weight, 1e-3)(view_1, view_2).item() == pytest.approx(expected, rel=1e-9)


def test_zero_for_equal_views_with_uncorrelated_features() -> None:
    view = torch.linalg.qr(views(40)[0] - views(40)[0].mean(dim=0)).Q
    assert BarlowTwinsLoss(epsilon=1e-12)(view, view).item() < 1e-12


def test_a_constant_feature_counts_as_uncorrelated() -> None:
    """Collapse to a constant costs (0 - 1)^2 per feature, and the gradient stays finite."""
    view = torch.full((8, 3), 2.5, requires_grad=True)
    loss = BarlowTwinsLoss()(view, view)
    assert loss.item() == pytest.approx(1.0)
    assert torch.isfinite(torch.autograd.grad(loss, view)[0]).all()


def test_shift_scale_order_and_exchange_of_views_do_not_matter() -> None:
    view_1, view_2 = views()
    loss = BarlowTwinsLoss(epsilon=1e-12)
    expected = loss(view_1, view_2)
    order = torch.randperm(len(view_1), generator=torch.Generator().manual_seed(1))
    features = torch.randperm(view_1.shape[1], generator=torch.Generator().manual_seed(2))
    for one, two in (
        (view_1 * 3 + 100, view_2),
        (view_1[order], view_2[order]),
        (view_1[:, features], view_2[:, features]),
        (view_2, view_1),
    ):
        torch.testing.assert_close(loss(one, two), expected)


def test_redundancy_weight_scales_the_off_diagonal_only() -> None:
    losses = [BarlowTwinsLoss(weight)(*views()) for weight in (0.1, 0.2, 0.4)]
    torch.testing.assert_close(losses[2] - losses[1], 2 * (losses[1] - losses[0]))
    assert losses[1] > losses[0]


def test_gradient_is_that_of_the_loss() -> None:
    inputs = [view.requires_grad_() for view in views(features=3)]
    assert torch.autograd.gradcheck(BarlowTwinsLoss(), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    view_1, view_2 = (view.to(dtype).requires_grad_() for view in views())
    expected = BarlowTwinsLoss()(view_1.float(), view_2.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = BarlowTwinsLoss()(view_1, view_2)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert torch.isfinite(torch.autograd.grad(inside, view_1)[0]).all()


def test_nan_is_not_hidden() -> None:
    view_1, view_2 = views()
    view_1[0, 0] = float("nan")
    assert torch.isnan(BarlowTwinsLoss()(view_1, view_2))


@pytest.mark.parametrize(
    ("view_1", "view_2", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), "one shape"),
        (torch.zeros(4, 3), torch.zeros(3, 3), "one shape"),
        (torch.zeros(4, 3, 2), torch.zeros(4, 3, 2), "`view_1`"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int32), "`view_2`"),
        (torch.zeros(1, 3), torch.zeros(1, 3), "at least two crops"),
    ],
)
def test_bad_input_is_named(view_1: Tensor, view_2: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BarlowTwinsLoss()(view_1, view_2)


@pytest.mark.parametrize("name", ["redundancy_weight", "epsilon"])
def test_bad_setting_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        BarlowTwinsLoss(**{name: -1.0})
