"""label_subset: few labels, by patients."""

from __future__ import annotations

from itertools import pairwise

import pytest

from anatomy_ssl.data.splits import label_subset

ITEMS = [{"image": f"{p}_{i}.nii", "subject": f"p{p}"} for p in range(20) for i in range(2)]


def patients(fraction: float, seed: int = 0) -> set[str]:
    """Patients of a subset."""
    return {item["subject"] for item in label_subset(ITEMS, fraction, seed)}


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.05, 1), (0.1, 2), (0.5, 10), (1.0, 20), (1, 1), (7, 7)])
def test_counts_patients_and_keeps_all_their_images(fraction: float, count: int) -> None:
    subset = label_subset(ITEMS, fraction, 3)
    assert len(patients(fraction, 3)) == count
    assert subset == [item for item in ITEMS if item["subject"] in patients(fraction, 3)]


def test_subsets_of_a_seed_are_nested() -> None:
    sizes = [0.01, 0.1, 0.25, 0.5, 1.0]
    assert all(patients(small) <= patients(large) for small, large in pairwise(sizes))


def test_seed_and_order_of_items() -> None:
    assert patients(5) == patients(5)
    assert len({frozenset(patients(5, seed)) for seed in range(5)}) > 1
    assert {i["subject"] for i in label_subset(ITEMS[::-1], 5)} == patients(5)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 0, 21, 1.5, float("nan")])
def test_refuses_what_is_no_share(fraction: float) -> None:
    with pytest.raises(ValueError, match="label_fraction"):
        label_subset(ITEMS, fraction)


def test_refuses_an_image_without_patient() -> None:
    with pytest.raises(ValueError, match=r"x\.nii has no `subject`"):
        label_subset([{"image": "x.nii"}], 0.5)
