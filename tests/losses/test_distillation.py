"""DistillationLoss: the formula in plain loops, its centre, and half precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from anatomy_ssl.losses.distillation import DistillationLoss


def logits(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Student and teacher of both views, from -1 to 1 about."""
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=rng, dtype=torch.float64) / 3).to(dtype) for _ in range(4)]


def cross_entropy(teacher: Tensor, student: Tensor, centre: Tensor, temperatures: tuple[float, float]) -> float:
    """Of one row, in Python's numbers; `temperatures` of student and teacher."""

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(v - max(values)) for v in values]
        return [p / sum(powers) for p in powers]

    target = softmax([(t - c) / temperatures[1] for t, c in zip(teacher.tolist(), centre.tolist())])
    found = softmax([s / temperatures[0] for s in student.tolist()])
    return -sum(t * math.log(f) for t, f in zip(target, found))


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5)])
def test_equals_the_formula_over_three_steps(across: bool, shape: tuple[int, ...]) -> None:
    """Each step with the centre of the steps before, the first with its own mean."""
    loss, centre = DistillationLoss(5, 0.2, 0.05, 0.7, across), torch.zeros(5, dtype=torch.float64)
    for step in range(3):
        views = logits(*shape, seed=step)
        s1, s2, t1, t2 = (view.reshape(-1, 5) for view in views)
        pairs = [(t1, s2), (t2, s1)] if across else [(t1, s1), (t2, s2)]
        mean = torch.cat([t1, t2]).mean(dim=0)
        centre = centre if step else mean
        values = [cross_entropy(t, s, centre, (0.2, 0.05)) for ts, ss in pairs for t, s in zip(ts, ss)]
        assert float(loss(*views)) == pytest.approx(sum(values) / len(values), rel=1e-6)
        centre = 0.7 * centre + 0.3 * mean
        torch.testing.assert_close(loss.centre.double(), centre, rtol=1e-6, atol=1e-7)


def test_gradients_reach_the_student_alone() -> None:
    """By the formula (softmax(s / a) - target) / a, over the number of rows."""
    loss, views = DistillationLoss(5, 0.2, 0.05, across=True), [view.requires_grad_() for view in logits(3, 5)]
    s1, _, t1, t2 = views
    loss.eval()(*views).backward()
    target = loss.assignment(t2.detach())
    assert t1.grad is None
    assert t2.grad is None
    torch.testing.assert_close(s1.grad, (torch.softmax(s1.detach() / 0.2, dim=1) - target) / 0.2 / 6)


def test_agreement_has_the_lowest_loss() -> None:
    """Then the cross-entropy is the teacher's entropy."""
    loss = DistillationLoss(5, 0.05, 0.05, across=True).eval()
    _, _, t1, t2 = logits(3, 5)
    target = loss.assignment(torch.cat([t1, t2]))
    entropy = -(target * target.log()).sum(dim=1).mean()
    torch.testing.assert_close(loss(t2, t1, t1, t2), entropy)
    assert loss(t1, t2, t1, t2) > entropy + 0.1


def test_the_centre_takes_what_all_rows_share() -> None:
    """A prototype that all rows prefer is preferred no more."""
    loss, views = DistillationLoss(5, centre_momentum=0.0), logits(40, 5)
    shifted = [*views[:2], *(view + 3 * torch.eye(5)[2] for view in views[2:])]
    loss(*shifted)
    assert int(loss.assignment(shifted[2]).argmax(dim=1).bincount(minlength=5)[2]) < 20


def test_the_centre_moves_in_training_steps_alone() -> None:
    loss, views = DistillationLoss(5), logits(3, 5)
    with torch.no_grad():
        loss(*views)
    loss.eval()(*views)
    loss.assignment(views[2])
    assert not loss.centre.any()
    loss.train()(*views)
    assert loss.centre.any()


def test_the_centre_is_kept_in_the_state() -> None:
    loss, views = DistillationLoss(5), logits(3, 5, dtype=torch.float32)
    loss(*views)
    resumed = DistillationLoss(5)
    resumed.load_state_dict(loss.state_dict())
    assert float(resumed(*views)) == float(loss(*views))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    """With sharp temperatures and scores as large as half precision bears, under autocast."""
    loss, exact = DistillationLoss(64, 0.1, 0.008), DistillationLoss(64, 0.1, 0.008)
    views = [(60 * view).to(dtype).requires_grad_() for view in logits(4, 9, 64)]
    with torch.autocast("cpu", dtype):
        found = loss(*views)
    found.backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(views[0].grad).all()  # type: ignore[arg-type]
    torch.testing.assert_close(found, exact(*(view.float() for view in views)))


@pytest.mark.parametrize(("shape", "other"), [((3, 4), (3, 4)), ((3, 5), (2, 5)), ((3, 5), (3, 1, 5))])
def test_shapes_that_do_not_fit_are_told(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    one, two = torch.zeros(shape), torch.zeros(other)
    with pytest.raises(ValueError, match=r"one shape \(\.\.\., 5\)"):
        DistillationLoss(5)(one, one, two, two)


@pytest.mark.parametrize(
    "changes", [{"student_temperature": 0.0}, {"teacher_temperature": -1.0}, {"centre_momentum": 1.1}]
)
def test_refuses(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        DistillationLoss(5, **changes)  # type: ignore[arg-type]
