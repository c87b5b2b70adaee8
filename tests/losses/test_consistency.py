"""Consistency of two views and the order of cells: oracles from the paper's formulas, in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from anatomy_ssl.losses.consistency import GlobalConsistencyLoss, LocalConsistencyLoss
from anatomy_ssl.losses.order import CellOrderLoss


def tensors(*shape: int, seed: int = 0, count: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Student and teacher of both views."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for _ in range(count)]


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Of unit vectors."""
    return ((a / a.norm() - b / b.norm()) ** 2).sum()


def matches(images: int, cells: int, seed: int = 0) -> Tensor:
    """Random partial matches; one image has none."""
    generator = torch.Generator().manual_seed(seed)
    match = torch.stack([torch.randperm(cells, generator=generator) for _ in range(images)])
    match[torch.rand(match.shape, generator=generator) < 0.4] = -1
    match[-1] = -1
    return match


def test_global_equals_the_formula() -> None:
    s1, s2, t1, t2 = tensors(5, 7)
    expected = sum(squared_distance(s1[n], t2[n]) + squared_distance(s2[n], t1[n]) for n in range(5)) / 5
    torch.testing.assert_close(GlobalConsistencyLoss()(s1, s2, t1, t2), expected)


def test_released_weight_is_that_of_the_mean_over_elements() -> None:
    """The release: element mean over 8,192 dimensions times 100,000; ours times 12.2."""
    s1, s2, t1, t2 = tensors(3, 8192)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (s1, s2, t1, t2)]
    mse = torch.nn.functional.mse_loss
    released = 1e5 * (mse(unit[0], unit[3]) + mse(unit[1], unit[2]))
    assert float(12.2 * GlobalConsistencyLoss()(s1, s2, t1, t2)) == pytest.approx(float(released), rel=1e-3)


@pytest.mark.parametrize("reduction", ["pairs", "images"])
def test_local_equals_the_formula(reduction: str) -> None:
    views, match = tensors(4, 6, 5), matches(4, 6)
    ordered = torch.tensor([True, False, True, True])
    s1, s2, t1, t2 = views
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for n in range(4):
        for i in range(6):
            j = int(match[n, i])
            if ordered[n] and j >= 0:
                total = total + (squared_distance(s1[n, i], t2[n, j]) + squared_distance(s2[n, j], t1[n, i])) / 2
                pairs += 1
    expected = total / (pairs if reduction == "pairs" else 3)
    found = LocalConsistencyLoss(reduction)(*views, match, ordered)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, s1, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_an_encoder_of_the_place_alone_has_no_local_loss() -> None:
    """A token that is a function of the cell's place in the image, in whatever view, for student and teacher."""
    place = torch.randn(30, 5)
    starts = torch.tensor([0, 3]), torch.tensor([2, 0])
    views = [torch.stack([place[s : s + 8] for s in start.tolist()]) for start in starts]
    match = torch.stack([torch.arange(8) + a - b for a, b in zip(*starts)])
    match[(match < 0) | (match >= 8)] = -1
    assert float(LocalConsistencyLoss()(*views, *views, match)) == pytest.approx(0.0, abs=1e-6)
    assert float(LocalConsistencyLoss()(*views, *views, match.roll(1, 1))) > 0.1


def centred(one: Tensor, two: Tensor) -> list[Tensor]:
    """Both views `(rows, F)` less their common mean row."""
    rows = [*one, *two]
    mean = sum(rows[1:], rows[0]) / len(rows)
    return [one - mean, two - mean]


def test_centring_equals_the_plain_loss_of_centred_embeddings() -> None:
    """The student's embeddings have their own mean, the teacher's theirs; of the image, and of the batch."""
    views, match = tensors(4, 6, 5), matches(4, 6)
    student, teacher = ([centred(one, two) for one, two in zip(*pair)] for pair in (views[:2], views[2:]))
    expected = LocalConsistencyLoss()(*(torch.stack(view) for pair in (student, teacher) for view in zip(*pair)), match)
    torch.testing.assert_close(LocalConsistencyLoss(centre=True)(*views, match), expected)
    whole = [view[:, 0] for view in views]
    expected = GlobalConsistencyLoss()(*centred(*whole[:2]), *centred(*whole[2:]))
    torch.testing.assert_close(GlobalConsistencyLoss(centre=True)(*whole), expected)


def test_naming_the_image_does_not_help_where_cells_are_centred() -> None:
    """One embedding for all cells of an image, another for each image."""
    views, match = tensors(4, 6, 5), matches(4, 6)
    image = torch.arange(4, dtype=torch.float64)[:, None, None] * 1000 + 1000
    plain, moved = (LocalConsistencyLoss(centre=True)(*x, match) for x in (views, [v + image for v in views]))
    torch.testing.assert_close(plain, moved)


def test_one_embedding_for_all_is_a_solution_without_centring_alone() -> None:
    """What all cells share makes the plain loss small, and leaves the centred one as it is."""
    views, match = tensors(4, 6, 5), matches(4, 6)
    shifted = [view + 1000 for view in views]
    assert float(LocalConsistencyLoss()(*shifted, match)) < 1e-4
    plain, moved = (LocalConsistencyLoss(centre=True)(*x, match) for x in (views, shifted))
    torch.testing.assert_close(plain, moved)
    assert float(plain.detach()) > 1


def test_nothing_to_compare_is_zero_with_a_gradient() -> None:
    """All images shuffled: the other losses go on, in every process alike."""
    views = tensors(2, 3, 4)
    loss = LocalConsistencyLoss()(*views, matches(2, 3), torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert float(loss) == 0
    assert torch.equal(views[0].grad, torch.zeros_like(views[0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    views, match = tensors(3, 6, 9, dtype=torch.float32), matches(3, 6)
    half = [view.to(dtype) for view in views]
    whole, rounded = LocalConsistencyLoss()(*views, match), LocalConsistencyLoss()(*half, match)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, whole, rtol=2e-2, atol=0)
    flat = [view[:, 0] for view in half]
    assert torch.isfinite(GlobalConsistencyLoss()(*flat))


def test_order_equals_the_formula() -> None:
    (logits,) = tensors(3, 4, 4, count=1)
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(n)) for n in range(3)])
    expected = -sum(logits[n, j].log_softmax(0)[order[n, j]] for n in range(3) for j in range(4)) / 12
    torch.testing.assert_close(CellOrderLoss()(logits, order).double(), expected, rtol=1e-5, atol=1e-6)
    assert float(CellOrderLoss()(torch.zeros(2, 9, 9), torch.zeros(2, 9, dtype=torch.long))) == pytest.approx(
        math.log(9)
    )


def test_shapes_that_do_not_belong_together() -> None:
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="one shape"):
        GlobalConsistencyLoss()(a[0], a[0], a[0], a[0, :2])
    with pytest.raises(ValueError, match="`match`"):
        LocalConsistencyLoss()(a, a, a, a, b[:, :2])
    with pytest.raises(ValueError, match="`reduction`"):
        LocalConsistencyLoss("cells")
    with pytest.raises(ValueError, match="`order`"):
        CellOrderLoss()(a, b)
