"""Batches of pairs: the student's views are masked, the teacher's whole, and what was hidden is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anatomy_ssl.engines.pair_batch import PreparePairs


def batch(number: int, size: tuple[int, ...] = (16, 16, 16)) -> dict[str, Any]:
    """Views without zeros, of different patients."""
    generator = torch.Generator().manual_seed(3)
    made: dict[str, Any] = {"score": torch.full((number,), 0.9), "fell_back": torch.zeros(number, dtype=torch.bool)}
    for n in (1, 2):
        made[f"view_{n}"] = torch.rand(number, 1, *size, generator=generator) + 1
        made[f"position_{n}"] = torch.rand(number, len(size), generator=generator) * 100
        made[f"subject_{n}"] = [f"patient {i + n}" for i in range(number)]
    return made


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("size", [(16, 16, 16), (16, 24)])
def test_masked_and_whole(number: int, size: tuple[int, ...]) -> None:
    made = batch(number, size)
    torch.manual_seed(1)
    x, targets = PreparePairs(block_size=8, mask_ratio=0.5)(made)
    for n in (1, 2):
        mask, whole, masked = targets[f"mask_{n}"], targets[f"whole_{n}"], x["masked"][n - 1]
        assert torch.equal(whole, made[f"view_{n}"])
        assert torch.equal(x["whole"][n - 1], whole)
        assert (masked[mask.expand_as(masked)] == 0).all()
        assert torch.equal(masked[~mask.expand_as(masked)], whole[~mask.expand_as(masked)])
        assert mask.float().mean() == 0.5
    assert not torch.equal(targets["mask_1"], targets["mask_2"])


def test_subjects_are_numbers() -> None:
    _, targets = PreparePairs(block_size=8)(batch(3))
    assert torch.equal(targets["subject_1"][1:], targets["subject_2"][:2])  # patient i + 1 of both
    assert len(targets["subject_1"].unique()) == 3


def test_a_seed_masks_alike_wherever_it_is_called() -> None:
    made = batch(3)
    seeded = PreparePairs(block_size=8, seed=0)
    first = seeded(made)[1]
    torch.rand(5)
    assert torch.equal(seeded(made)[1]["mask_1"], first["mask_1"])
    moved = {**made, "position_1": made["position_1"] + 1}
    assert not torch.equal(seeded(moved)[1]["mask_1"], first["mask_1"])
    torch.manual_seed(1)
    free = PreparePairs(block_size=8)
    assert not torch.equal(free(made)[1]["mask_1"], free(made)[1]["mask_1"])


def test_seeded_masks_of_a_pair_do_not_depend_on_the_batch() -> None:
    """So that validation is the same in batches of any size and in any number of processes."""
    made = batch(4)
    seeded = PreparePairs(block_size=8, seed=0)
    together = seeded(made)[1]
    for i in range(4):
        alone = seeded({name: value[i : i + 1] for name, value in made.items()})[1]
        assert all(torch.equal(alone[f"mask_{n}"][0], together[f"mask_{n}"][i]) for n in (1, 2))
    assert not torch.equal(together["mask_1"], together["mask_2"])
    assert len({tuple(mask.flatten().tolist()) for mask in together["mask_1"]}) > 1
