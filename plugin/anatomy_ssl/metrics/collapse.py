"""Whether an embedding has collapsed: how many dimensions it fills, and how far it spreads."""

from __future__ import annotations

import numpy as np
import torch


def rankme(z: torch.Tensor | np.ndarray, eps: float = 1e-7) -> float:
    """Effective rank of the embedding matrix: `exp(-sum p_k log p_k)`, `p_k = s_k / sum(s) + eps`.

    `s` are the singular values of `z`, not centred, as in the source: Garrido et al. 2023, "RankMe: Assessing the
    Downstream Performance of Pretrained Self-Supervised Representations by Their Rank", equations 1 and 2.

    Args:
        z: `(N, F)` embeddings.
        eps: added to each share, so that vanishing singular values do not give NaN.

    Returns:
        About 1 where all embeddings lie on one line through zero, up to `min(N, F)`. An embedding made for positions
        is low by nature (it fills few dimensions); under 3 it has collapsed. 0 where all embeddings are zero.
    """
    s = torch.linalg.svdvals(torch.as_tensor(z).detach().float().cpu())  # (min(N, F),)
    total = s.sum()
    if total == 0:
        return 0.0
    p = s.double() / total + eps
    return float(torch.exp(-(p * p.log()).sum()))


def spread(z: torch.Tensor | np.ndarray) -> float:
    """Mean over the features of the standard deviation over the crops.

    Zero says that all crops have the same embedding (complete collapse), also where that embedding is far from zero;
    a steady fall says that the embedding shrinks, which `rankme` cannot see because it ignores scale.

    Args:
        z: `(N, F)` embeddings.
    """
    return float(torch.as_tensor(z).detach().double().std(dim=0, unbiased=False).mean())
