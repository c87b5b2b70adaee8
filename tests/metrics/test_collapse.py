from __future__ import annotations

import numpy as np
import pytest
import torch

from anatomy_ssl.metrics.collapse import rankme, spread


def rankme_reference(z: np.ndarray, eps: float = 1e-7) -> float:
    """Garrido et al. 2023, equations 1 and 2, term by term."""
    singular = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    entropy = 0.0
    for value in singular:
        p = value / sum(singular) + eps
        entropy -= p * np.log(p)
    return float(np.exp(entropy))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_formula(shape: tuple[int, int]) -> None:
    z = np.random.default_rng(0).normal(size=shape) * np.linspace(0.01, 3, shape[1])
    assert rankme(z) == pytest.approx(rankme_reference(z), rel=1e-4)
    assert rankme(torch.from_numpy(z)) == rankme(z)
    z[:, 3:] = 0  # singular values of exactly zero
    assert rankme(z) == pytest.approx(rankme_reference(z), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_isotropic_embeddings_have_their_rank(rank: int) -> None:
    rng = np.random.default_rng(rank)
    left = np.linalg.qr(rng.normal(size=(60, rank)))[0]
    right = np.linalg.qr(rng.normal(size=(20, rank)))[0]
    assert rankme(left @ right.T) == pytest.approx(rank, abs=0.02)


def test_rotation_and_scale_do_not_matter_to_rankme() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 6)) * np.arange(1, 7)
    rotated = 13 * z @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert rankme(rotated) == pytest.approx(rankme(z), rel=1e-4)


def test_no_embedding_at_all_is_zero() -> None:
    assert rankme(torch.zeros(5, 3)) == 0.0
    assert rankme(torch.ones(5, 3, dtype=torch.float16)) == pytest.approx(1, abs=1e-3)


def test_spread() -> None:
    z = np.random.default_rng(0).normal(size=(30, 4)) + 100
    assert spread(z) == pytest.approx(np.mean([np.std(column) for column in z.T]))
    assert spread(3 * z - 7) == pytest.approx(3 * spread(z))
    assert spread(np.full((30, 4), 5.0)) == 0
