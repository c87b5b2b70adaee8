"""Split images so that a patient is on one side."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["label_subset", "split_patients"]

Item = dict[str, Any]
_logger = logging.getLogger(__name__)


def split_patients(
    items: Sequence[Item], fractions: Mapping[str, float] | None = None, seed: int = 0, by: str = "random"
) -> dict[str, list[Item]]:
    """Split items so that all images of a patient (`subject`) are on one side.

    Args:
        items: items with a `subject`; their order is kept within each split.
        fractions: split -> size; default 0.8 training, 0.1 validation, 0.1 test. A float is a share of the patients, an
            int a number of patients; with both, the shares are of the patients that the numbers leave:
            `{"training": 1.0, "test": 15}`. Shares add up to 1; numbers alone add up to all patients.
        seed: of the order of patients for `by="random"`.
        by: "random", or "sorted": patients in the order of their names fill the splits in the order given, so that
            `{"training": 1.0, "test": 15}` holds out the last 15.

    Raises:
        ValueError: where an item has no subject, the sizes do not add up, or a split of non-zero size gets no patient.
    """
    if by not in ("random", "sorted"):
        raise ValueError(f"by={by!r} is not known; give 'random' or 'sorted'.")
    unnamed = next((item for item in items if not item.get("subject")), None)
    if unnamed is not None:
        raise ValueError(f"{unnamed.get('image')} has no `subject`, by which the images are split; give it one.")
    patients = sorted({str(item["subject"]) for item in items})
    if by == "random":
        patients = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    counts = _patient_counts(fractions or {"training": 0.8, "validation": 0.1, "test": 0.1}, len(patients))
    names = [name for name, count in counts.items() for _ in range(count)]
    split_of = dict(zip(patients, names))
    return {name: [item for item in items if split_of[str(item["subject"])] == name] for name in counts}


def label_subset(items: Sequence[Item], fraction: float = 1.0, seed: int = 0) -> list[Item]:
    """The items of some patients, to train with few labels: all images of a patient or none.

    Subsets of one seed are nested: the patients of 5% are among those of 10%, so that a curve over fractions compares
    like with like.

    Args:
        items: items with a `subject`; their order is kept.
        fraction: a float is a share of the patients above 0 and up to 1.0, rounded, one patient at least; an int is a
            number of patients (1.0 is all patients, 1 is one).
        seed: of the order in which patients are taken.

    Raises:
        ValueError: where an item has no subject, or the fraction is out of its range.
    """
    unnamed = next((item for item in items if not item.get("subject")), None)
    if unnamed is not None:
        raise ValueError(f"{unnamed.get('image')} has no `subject`, by which labels are counted; give it one.")
    patients = sorted({str(item["subject"]) for item in items})
    valid = isinstance(fraction, (int, float)) and fraction > 0 and (isinstance(fraction, int) or fraction <= 1)
    count = 0 if not valid else fraction if isinstance(fraction, int) else max(1, round(fraction * len(patients)))
    if not 1 <= count <= len(patients):
        raise ValueError(
            f"label_fraction {fraction} is neither a share of the {len(patients)} patients (above 0, up to 1.0) nor a "
            "number of them."
        )
    order = np.random.default_rng(seed).permutation(len(patients))
    chosen = {patients[i] for i in order[:count]}
    if count < len(patients):
        _logger.info("label_fraction %s: %d of %d patients", fraction, count, len(patients))
    return [item for item in items if str(item["subject"]) in chosen]


def _patient_counts(sizes: Mapping[str, float], total: int) -> dict[str, int]:
    """Patients per split: numbers as given, shares by largest remainder with at least one patient each."""
    numbers = {name: size for name, size in sizes.items() if isinstance(size, int)}
    shares = {name: float(size) for name, size in sizes.items() if name not in numbers}
    rest = total - sum(numbers.values())
    wanted = sum(share > 0 for share in shares.values())
    if any(not size >= 0 for size in sizes.values()):
        raise ValueError(f"The sizes of splits {dict(sizes)} must not be negative.")
    if rest < wanted:
        raise ValueError(f"{total} patients are too few for the splits {dict(sizes)}; every split needs one at least.")
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6) if shares else rest:
        raise ValueError(
            f"The splits {dict(sizes)} do not take in all {total} patients: shares (such as 1.0) must add up to 1, "
            "numbers of patients alone to all of them."
        )
    counts = {name: math.floor(share * rest + 1e-9) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name] * rest)
    for name in by_remainder[: rest - sum(counts.values())]:
        counts[name] += 1
    for name in shares:
        if shares[name] > 0 and counts[name] == 0:
            counts[max(counts, key=lambda n: counts[n])] -= 1
            counts[name] = 1
    return {name: numbers.get(name, counts.get(name, 0)) for name in sizes}  # type: ignore[misc]
