from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from anatomy_ssl.losses.distance import PhysicalDistanceLoss, subject_blocks
from tests.losses.largest_tensor import LargestTensor
from tests.reference.losses import distance_loss

MODES = ("same_subject", "all")


def batch(
    crops: int = 30, features: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, positions in mm far from the origin, interleaved subjects of unequal size (one of a single crop)."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(crops, features, generator=generator, dtype=dtype)
    position = torch.rand(crops, 3, generator=generator, dtype=dtype) * 400 - 900
    subject = torch.randint(0, 5, (crops,), generator=generator)
    subject[3] = 99
    return embedding, position, subject


def rotation(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q


@pytest.mark.parametrize("pairs", MODES)
@pytest.mark.parametrize("crops", [8, 30, 60])
def test_equals_loop_over_pairs(pairs: str, crops: int) -> None:
    """60 crops pass torch.cdist's threshold (25 rows) from differences to a matrix product."""
    embedding, position, subject = batch(crops)
    loss = PhysicalDistanceLoss(50.0, pairs)(embedding, position, subject)
    groups = subject.tolist() if pairs == "same_subject" else None
    assert loss.item() == pytest.approx(distance_loss(embedding.tolist(), position.tolist(), groups, 50.0), rel=1e-9)


def test_all_pairs_of_one_subject_is_the_same_loss() -> None:
    embedding, position, subject = batch()
    one = PhysicalDistanceLoss(pairs="same_subject")(embedding, position, torch.zeros_like(subject))
    torch.testing.assert_close(one, PhysicalDistanceLoss(pairs="all")(embedding, position))


def test_relation_to_the_papers_full_matrix() -> None:
    """The paper averages over N x N with a zero diagonal: smaller by (N - 1) / N."""
    embedding, position, _ = batch()
    count = len(embedding)
    paper = torch.nn.functional.mse_loss(torch.cdist(embedding, embedding), torch.cdist(position, position))
    ours = PhysicalDistanceLoss(reference_length=1, pairs="all")(embedding, position)
    torch.testing.assert_close(ours * (count - 1) / count, paper)


@pytest.mark.parametrize("pairs", MODES)
@pytest.mark.parametrize("crops", [10, 60])
def test_zero_at_an_isometric_embedding(pairs: str, crops: int) -> None:
    """Positions in units of the reference length, turned and moved, in more dimensions: in float32."""
    _, position, subject = batch(crops)
    embedding = torch.nn.functional.pad(position @ rotation(1) / 100 + 20, (0, 5)).float()
    assert PhysicalDistanceLoss(100.0, pairs)(embedding, position, subject).item() < 1e-6


@pytest.mark.parametrize("pairs", MODES)
def test_world_origin_rotation_and_order_do_not_matter(pairs: str) -> None:
    embedding, position, subject = batch()
    loss = PhysicalDistanceLoss(pairs=pairs)
    expected = loss(embedding, position, subject)
    moved = position @ rotation(2) + torch.tensor([300.0, -50.0, 1000.0])
    order = torch.randperm(len(embedding), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss(embedding, moved, subject), expected)
    torch.testing.assert_close(loss(embedding[order], position[order], subject[order]), expected)
    torch.testing.assert_close(loss(embedding + 7, position, subject), expected)


def test_subjects_frames_are_independent() -> None:
    """Moving one subject's world changes nothing for same_subject, and does for all."""
    embedding, position, subject = batch()
    moved = position + 500.0 * (subject == 1)[:, None]
    losses = {pairs: PhysicalDistanceLoss(pairs=pairs) for pairs in MODES}
    torch.testing.assert_close(
        losses["same_subject"](embedding, moved, subject), losses["same_subject"](embedding, position, subject)
    )
    assert not torch.isclose(losses["all"](embedding, moved), losses["all"](embedding, position))


def test_reference_length_is_the_unit() -> None:
    """Scaling embeddings by s and the reference length by 1 / s scales the loss by s^2."""
    embedding, position, subject = batch()
    expected = 9 * PhysicalDistanceLoss(150.0)(embedding, position, subject)
    torch.testing.assert_close(PhysicalDistanceLoss(50.0)(3 * embedding, position, subject), expected)


@pytest.mark.parametrize("pairs", MODES)
@pytest.mark.parametrize("crops", [6, 30])
def test_gradient_is_that_of_the_loss(pairs: str, crops: int) -> None:
    embedding, position, subject = batch(crops, features=3)
    embedding.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: PhysicalDistanceLoss(50.0, pairs)(z, position, subject), (embedding,))


@pytest.mark.parametrize("pairs", MODES)
@pytest.mark.parametrize("crops", [10, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_finite_where_embeddings_coincide(pairs: str, crops: int, dtype: torch.dtype) -> None:
    embedding, position, subject = batch(crops)
    some = embedding.clone()
    some[::2] = some[0]
    for collapsed in (some, torch.zeros_like(embedding), torch.ones_like(embedding) * 3):
        z = collapsed.to(dtype).requires_grad_()
        loss = PhysicalDistanceLoss(pairs=pairs)(z, position, subject)
        (gradient,) = torch.autograd.grad(loss, z)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 10


def test_gradient_is_zero_at_coincident_pair() -> None:
    z = torch.ones(2, 4, requires_grad=True)
    loss = PhysicalDistanceLoss()(z, torch.tensor([[0.0, 0, 0], [50.0, 0, 0]]), torch.tensor([1, 1]))
    assert loss.item() == pytest.approx(0.25)
    assert torch.equal(torch.autograd.grad(loss, z)[0], torch.zeros_like(z))


@pytest.mark.parametrize("pairs", MODES)
def test_small_distances_far_from_the_origin_keep_their_precision(pairs: str) -> None:
    """Embeddings of an untrained network nearly coincide on a large common offset."""
    embedding, position, subject = batch(60, features=64)
    embedding = (embedding * 0.01 + 30).float()
    loss = PhysicalDistanceLoss(1e4, pairs)
    exact = loss(embedding.double(), position, subject)
    torch.testing.assert_close(loss(embedding, position, subject).double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("pairs", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(pairs: str, dtype: torch.dtype) -> None:
    """Half inputs give the float32 loss of the same numbers, and autocast changes nothing."""
    embedding, position, subject = batch(60)
    loss = PhysicalDistanceLoss(pairs=pairs)
    half = embedding.to(dtype)
    expected = loss(half.float(), position.float(), subject)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(half, position.float(), subject)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


def test_work_is_by_subject() -> None:
    """64 subjects of 4 crops: nothing of N x N elements is made, also not in the backward."""
    crops, features = 256, 8
    subject = torch.arange(crops) % 64
    embedding = torch.randn(crops, features, requires_grad=True)
    with LargestTensor() as largest:
        PhysicalDistanceLoss()(embedding, torch.rand(crops, 3), subject).backward()
    assert largest.elements <= crops * features


def test_one_large_subject_among_small_ones_costs_its_own_block() -> None:
    crops = 128
    subject = torch.cat([torch.zeros(64, dtype=torch.int64), 1 + torch.arange(64) // 2])
    embedding = torch.randn(crops, 4, requires_grad=True)
    with LargestTensor() as largest:
        PhysicalDistanceLoss()(embedding, torch.rand(crops, 3), subject).backward()
    assert largest.elements <= 64**2


def test_blocks_hold_every_subject_once() -> None:
    blocks = subject_blocks(torch.tensor([5, 1, 5, -2, 1, 9, 9, 9]))
    assert [block.tolist() for block in blocks] == [[[1, 4], [0, 2]], [[5, 6, 7]]]


@pytest.mark.parametrize("pairs", MODES)
def test_two_dimensions_and_metatensors(pairs: str) -> None:
    embedding, position, subject = batch()
    position[:, 2] = 0
    loss = PhysicalDistanceLoss(pairs=pairs)
    flat = loss(MetaTensor(embedding), MetaTensor(position[:, :2]), MetaTensor(subject))
    assert type(flat) is Tensor
    torch.testing.assert_close(flat, loss(embedding, position, subject))


@pytest.mark.parametrize("pairs", MODES)
def test_nan_embedding_is_not_hidden(pairs: str) -> None:
    embedding, position, subject = batch()
    embedding[0, 0] = float("nan")
    assert not torch.isfinite(PhysicalDistanceLoss(pairs=pairs)(embedding, position, subject))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": None}, "needs `subject`"),
        ({"subject": torch.zeros(3, dtype=torch.int64)}, "needs `subject`"),
        ({"subject": torch.zeros(30)}, "integers"),
        ({"subject": torch.arange(30)}, "several crops per volume"),
        ({"embedding": torch.zeros(30)}, "`embedding`"),
        ({"embedding": torch.zeros(30, 4, dtype=torch.int64)}, "`embedding`"),
        ({"embedding": torch.zeros(29, 4)}, "`position`"),
        ({"position": torch.zeros(30)}, "`position`"),
        ({"position": torch.full((30, 3), float("nan"))}, "NaN"),
        ({"position": torch.full((30, 3), float("inf"))}, "infinite"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = dict(zip(("embedding", "position", "subject"), batch())) | change
    with pytest.raises(ValueError, match=message):
        PhysicalDistanceLoss()(**arguments)


def test_one_crop_has_no_pair() -> None:
    with pytest.raises(ValueError, match="at least two crops"):
        PhysicalDistanceLoss(pairs="all")(torch.zeros(1, 4), torch.zeros(1, 3))


@pytest.mark.parametrize("arguments", [{"reference_length": 0}, {"reference_length": float("nan")}, {"pairs": "some"}])
def test_bad_setting_is_named(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PhysicalDistanceLoss(**arguments)
