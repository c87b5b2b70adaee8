from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anatomy_ssl.losses.coordinate import CoordinateRegressionLoss
from tests.reference.losses import coordinate_loss


def batch(crops: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(crops, 3, generator=generator, dtype=torch.float64)
    return prediction, torch.rand(crops, 3, generator=generator, dtype=torch.float64) * 400 - 200


def test_equals_loops() -> None:
    prediction, position = batch()
    expected = coordinate_loss(prediction.tolist(), position.tolist(), 50.0)
    assert CoordinateRegressionLoss(50.0)(prediction, position).item() == pytest.approx(expected, rel=1e-12)


def test_zero_where_the_prediction_is_right() -> None:
    _, position = batch()
    assert CoordinateRegressionLoss(50.0)(position / 50, position).item() == 0


def test_order_does_not_matter() -> None:
    prediction, position = batch()
    expected = CoordinateRegressionLoss()(prediction, position)
    torch.testing.assert_close(CoordinateRegressionLoss()(prediction.flip(0), position.flip(0)), expected)


def test_gradient_is_that_of_the_loss() -> None:
    prediction, position = batch()
    assert torch.autograd.gradcheck(lambda p: CoordinateRegressionLoss()(p, position), (prediction.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    prediction, position = batch()
    prediction = prediction.to(dtype).requires_grad_()
    expected = CoordinateRegressionLoss()(prediction.float(), position.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = CoordinateRegressionLoss()(prediction, position.float())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert torch.isfinite(torch.autograd.grad(inside, prediction)[0]).all()


def test_nan_prediction_is_not_hidden() -> None:
    prediction, position = batch()
    prediction[0, 0] = float("nan")
    assert torch.isnan(CoordinateRegressionLoss()(prediction, position))


@pytest.mark.parametrize(
    ("prediction", "position", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 3), "output size"),
        (torch.zeros(4, 3), torch.zeros(3, 3), "`position`"),
        (torch.zeros(4), torch.zeros(4), "`prediction`"),
        (torch.zeros(4, 3), torch.full((4, 3), float("nan")), "NaN"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "no crops"),
    ],
)
def test_bad_input_is_named(prediction: Tensor, position: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoordinateRegressionLoss()(prediction, position)


def test_bad_reference_length_is_named() -> None:
    with pytest.raises(ValueError, match="reference_length"):
        CoordinateRegressionLoss(-100.0)
