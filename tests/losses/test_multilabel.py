from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from anatomy_ssl.losses.multilabel import MultiLabelLoss

NAN = math.nan


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels of seven images, some labels not known, of one image none."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 2, (7, 3), generator=generator).double()
    target[0, 1] = target[2, 0] = target[2, 2] = NAN
    target[5] = NAN
    return logits, target


def classes() -> tuple[Tensor, Tensor]:
    """The same with one class each."""
    logits, target = example()
    one = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 1, 0, 2, 2]), 3).double()
    return logits, one + 0 * target  # NaN stays


@pytest.mark.parametrize("weights", [None, [2.0, 0.5, 3.0]])
def test_equals_loops(weights: list[float] | None) -> None:
    logits, target = example()
    total, count = 0.0, 0
    for row, labels in zip(logits.tolist(), target.tolist()):
        for k, (x, y) in enumerate(zip(row, labels)):
            if not math.isnan(y):
                p = 1 / (1 + math.exp(-x))
                weight = weights[k] if weights else 1.0
                total -= weight * y * math.log(p) + (1 - y) * math.log(1 - p)
                count += 1
    assert MultiLabelLoss(weights)(logits, target).item() == pytest.approx(total / count, rel=1e-9)


def test_exclusive_equals_loops() -> None:
    """Of the images whose labels are all known."""
    logits, target = classes()
    costs = [
        math.log(sum(math.exp(x) for x in row)) - row[labels.index(1.0)]
        for row, labels in zip(logits.tolist(), target.tolist())
        if not any(map(math.isnan, labels))
    ]
    assert len(costs) == 4
    loss = MultiLabelLoss(exclusive=True)(logits, target)
    assert loss.item() == pytest.approx(sum(costs) / len(costs), rel=1e-9)


@pytest.mark.parametrize("exclusive", [False, True])
def test_unknown_labels_neither_cost_nor_teach(exclusive: bool) -> None:
    """Their logits may be anything; their gradient is zero; a batch without labels costs nothing."""
    logits, target = classes()
    logits.requires_grad_()
    loss = MultiLabelLoss(exclusive=exclusive)
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    unknown = target.isnan().any(dim=1, keepdim=True).expand(7, 3) if exclusive else target.isnan()
    assert not gradient[unknown].any()
    assert (gradient[~unknown] != 0).all()
    with torch.no_grad():
        assert loss(torch.where(unknown, 99.0, logits), target) == loss(logits, target)
    nothing = loss(logits, torch.full_like(target, NAN))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize("exclusive", [False, True])
def test_gradient_is_that_of_the_loss(exclusive: bool) -> None:
    logits, target = classes()
    assert torch.autograd.gradcheck(
        lambda x: MultiLabelLoss([2.0, 1.0, 1.0], exclusive)(x, target), [logits.requires_grad_()]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    """In float32; finite for logits that overflow half precision's exponential."""
    logits, target = example()
    logits = (20 * logits).to(dtype).requires_grad_()
    expected = MultiLabelLoss()(logits.float(), target.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = MultiLabelLoss()(logits, target.to(dtype))
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert torch.isfinite(torch.autograd.grad(inside, logits)[0]).all()


def test_nan_in_logits_is_not_hidden() -> None:
    logits, target = example()
    logits[1, 0] = NAN
    assert torch.isnan(MultiLabelLoss()(logits, target))


@pytest.mark.parametrize(
    ("weights", "logits", "target", "message"),
    [
        (None, torch.zeros(4, 3), torch.zeros(4, 2), "one shape"),
        (None, torch.zeros(4), torch.zeros(4), "`logits`"),
        ([1.0, 2.0], torch.zeros(4, 3), torch.zeros(4, 3), "2 numbers for 3 labels"),
        ([1.0, 0.0, 1.0], torch.zeros(4, 3), torch.zeros(4, 3), "one positive number"),
    ],
)
def test_bad_input_is_named(weights: list[float] | None, logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiLabelLoss(weights)(logits, target)
