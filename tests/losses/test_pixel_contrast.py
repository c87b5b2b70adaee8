"""The contrast between places, against the formula written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from anatomy_ssl.losses import PixelContrastLoss
from anatomy_ssl.losses.pixel_contrast import at_points


def maps(number: int = 4, size: tuple[int, ...] = (5, 4, 3), seed: int = 0) -> torch.Tensor:
    values = torch.randn(number, 6, *size, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=1)


def on_grid(number: int, points: int, size: tuple[int, ...], stride: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(n, (number, points), generator=g) for n in size], dim=2).float() * stride


def oracle(embedding: torch.Tensor, points: torch.Tensor, stride: int, temperature: float, radius: float) -> float:
    """Every place beyond the radius is a negative; points lie on entries."""
    half, terms = len(embedding) // 2, []
    size = embedding.shape[2:]
    for image in range(half):
        pair = (image, image + half)
        for p in range(points.shape[1]):
            vectors = {v: embedding[v][(slice(None), *(points[v, p] / stride).long().tolist())] for v in pair}
            positive = math.exp(float(vectors[pair[0]] @ vectors[pair[1]]) / temperature)
            for v in pair:
                total = positive
                for w in pair:
                    for index in torch.cartesian_prod(*[torch.arange(n) for n in size]):
                        if torch.dist(index.float() * stride, points[w, p]) > radius:
                            other = embedding[w][(slice(None), *index.tolist())]
                            total += math.exp(float(vectors[v] @ other) / temperature)
                terms.append(-math.log(positive / total))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("size", [(5, 4, 3), (6, 5)])
def test_equals_the_formula(size: tuple[int, ...]) -> None:
    """With as many negatives as places, drawing them changes nothing."""
    embedding, points = maps(size=size), on_grid(4, 7, size, 2)
    loss = PixelContrastLoss(stride=2, temperature=0.3, radius=2.5, candidates=10**6, negatives=10**6)
    assert float(loss(embedding, points)) == pytest.approx(oracle(embedding, points, 2, 0.3, 2.5), rel=1e-5)


def test_the_hardest_places_are_the_negatives() -> None:
    """The fewer candidates, the more alike the negatives, and the larger the mean of their exponentials."""
    embedding, points = maps(size=(8, 8, 8)), on_grid(4, 20, (8, 8, 8), 2)
    kinds = [PixelContrastLoss(2, 0.5, 2.5, candidates=c, negatives=50) for c in (50, 200, 1000)]
    values = [float(loss(embedding, points)) for loss in kinds]
    assert values[0] > values[1] > values[2]


def test_places_near_a_point_are_no_negatives() -> None:
    """A map that is right but smooth is not punished for it: neighbours within the radius do not enter."""
    embedding, points = maps(2, (5, 4, 3)), on_grid(2, 6, (5, 4, 3), 2)
    loss = PixelContrastLoss(2, 0.5, 2.5, candidates=10**6, negatives=10**6)
    before = loss(embedding, points)
    changed = embedding.clone().requires_grad_()
    loss(changed, points).backward()
    assert changed.grad is not None
    with pytest.raises(ValueError, match="lower radius"):
        PixelContrastLoss(2, 0.5, radius=100.0)(embedding, points)
    assert float(loss(embedding.flip(0), points.flip(0))) == pytest.approx(float(before), rel=1e-5)


def test_negatives_of_the_batch_raise_the_loss() -> None:
    embedding, points = maps(), on_grid(4, 7, (5, 4, 3), 2)
    alone = PixelContrastLoss(2, 0.5, 2.5, candidates=10, negatives=10)
    more = PixelContrastLoss(2, 0.5, 2.5, candidates=10, negatives=10, batch_negatives=100)
    assert more(embedding, points) > alone(embedding, points)
    single = embedding[[0, 2]], points[[0, 2]]
    assert float(more(*single)) == pytest.approx(float(alone(*single)), rel=1e-5)


def test_points_between_entries_are_interpolated() -> None:
    """Of a map that is linear in the index, before vectors get unit length again."""
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in (5, 4, 6)], indexing="ij"))[None]
    points = torch.tensor([[[1.25, 2.5, 4.75], [4.0, 0.0, 5.0]]])
    assert torch.allclose(at_points(index, points), F.normalize(points, dim=2), atol=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="need points"):
        PixelContrastLoss(2)(maps(3), torch.zeros(3, 5, 3))
    with pytest.raises(ValueError, match="need points"):
        PixelContrastLoss(2)(maps(4), torch.zeros(4, 5, 2))
