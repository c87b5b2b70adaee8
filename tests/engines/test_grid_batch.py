"""PrepareGridViews: what the targets say is what was done to the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from anatomy_ssl.engines.grid_batch import PrepareGridViews
from anatomy_ssl.transforms.cells import RandBezierIntensity, permute_cells
from anatomy_ssl.transforms.distortions import RandCoarseShuffle
from anatomy_ssl.transforms.grid_views import RandGridViewsd

GRID = (3, 2)


class Inverted(nn.Module):
    """A distortion that is easy to recognise."""

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """1 - x."""
        return 1 - x


def batch(size: int = 40) -> dict[str, Any]:
    """Views of one random image, as a loader collates them."""
    transform = RandGridViewsd("image", GRID, 4, 2).set_random_state(0)
    image = torch.rand(1, *transform.image_size, generator=torch.Generator().manual_seed(0))
    items = [transform({"image": image}) for _ in range(size)]
    tensors: dict[str, Any] = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    return tensors | {"subject": [f"p{i}" for i in range(size)]}


def test_targets_describe_the_views() -> None:
    given = batch()
    torch.manual_seed(0)
    (first, second), targets = PrepareGridViews(GRID, [Inverted()], mean=0.0, std=1.0)(given)
    torch.testing.assert_close(second, given["image_2"])
    torch.testing.assert_close(targets["clean"], given["image_1"])
    shuffled = ~targets["ordered"]
    assert 8 < int(shuffled.sum()) < 32
    shown = permute_cells(given["image_1"], targets["target_order"], GRID)
    torch.testing.assert_close(first[shuffled], shown[shuffled])
    torch.testing.assert_close(first[~shuffled], 1 - given["image_1"][~shuffled])
    assert (targets["target_order"][~shuffled] == torch.arange(6)).all()
    assert torch.equal(targets["target_order"].sort(dim=1).values, torch.arange(6).expand(40, -1))
    for n in range(40):
        for i, j in enumerate(targets["match"][n].tolist()):
            boxes = [(slice(p // 2 * 4, p // 2 * 4 + 4), slice(p % 2 * 4, p % 2 * 4 + 4)) for p in (i, max(j, 0))]
            same = torch.equal(given["image_1"][n, 0][boxes[0]], given["image_2"][n, 0][boxes[1]])
            assert same == (j >= 0)


def test_normalised_and_repeated_after_all_distortions() -> None:
    prepare = PrepareGridViews(GRID, [Inverted()], order_prob=0.0, mean=0.5, std=0.25, channels=3)
    given = batch(2)
    (first, second), targets = prepare(given)
    assert first.shape == second.shape == (2, 3, 12, 8)
    torch.testing.assert_close(first[:, 2], (0.5 - given["image_1"][:, 0]) / 0.25)
    assert targets["clean"].shape == (2, 1, 12, 8)


def test_validation_is_the_same_whatever_was_drawn_before() -> None:
    given, fixed = batch(8), PrepareGridViews(GRID, seed=3)
    (a, _), targets = fixed(given)
    torch.rand(5)
    (b, _), _ = fixed(given)
    assert torch.equal(a, b)
    other = {**given, "subject": [f"q{i}" for i in range(8)]}
    assert not torch.equal(fixed(other)[1]["target_order"], targets["target_order"])
    free = PrepareGridViews(GRID)
    assert not torch.equal(free(given)[1]["target_order"], free(given)[1]["target_order"])


def test_bytes_are_fed_as_floats_are() -> None:
    given = batch(12)
    coarse = {key: (value * 255).round().byte() if key.startswith("image") else value for key, value in given.items()}
    floats = {key: value / 255 if key.startswith("image") else value for key, value in coarse.items()}
    distortions = [RandBezierIntensity(1.0), RandCoarseShuffle(size=4, min_size=1, prob=1.0)]
    prepare = PrepareGridViews(GRID, distortions, seed=1)
    (first, second), targets = prepare(coarse)
    (first_of_floats, second_of_floats), expected = prepare(floats)
    assert first.dtype == second.dtype == targets["clean"].dtype == torch.float32
    torch.testing.assert_close(second, second_of_floats)
    torch.testing.assert_close(targets["clean"], expected["clean"])
    torch.testing.assert_close(first, first_of_floats, atol=0.51 / 255 / 0.252, rtol=0)  # the curve rounds to bytes
    assert torch.equal(targets["target_order"], expected["target_order"])
    assert coarse["image_1"].dtype == torch.uint8


def test_probability() -> None:
    given = batch(10)
    assert not PrepareGridViews(GRID, order_prob=1.0)(given)[1]["ordered"].any()
    assert PrepareGridViews(GRID, order_prob=0.0)(given)[1]["ordered"].all()
    with pytest.raises(ValueError, match="probability"):
        PrepareGridViews(GRID, order_prob=2.0)


def test_other_views_of_the_same_patients_are_distorted_otherwise() -> None:
    """Repeats in an evaluation would else shuffle the same images in the same order."""
    given, fixed = batch(8), PrepareGridViews(GRID, seed=3)
    moved = {**given, "cell_1": given["cell_1"] + 1}
    assert not torch.equal(fixed(given)[1]["target_order"], fixed(moved)[1]["target_order"])
