"""Barlow Twins: two views of a crop agree in every feature, and features do not repeat one another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import paired_views, positive
from .gather import row_counts, sum_over_processes


class BarlowTwinsLoss(nn.Module):
    """Cross-correlation of two views' features, pulled towards the identity (Zbontar et al. 2021, arXiv 2103.03230).

    Equation 1: sum_i (C_ii - 1)^2 / F + redundancy_weight * sum_{i != j} C_ij^2 / F, with C_ij the correlation of
    feature i of view 1 with feature j of view 2. Features are standardised over the whole batch, of all processes. The
    division by F is not in the paper but in ISImed's Barlow variant.

    `monai.losses.BarlowTwinsLoss` is not used: it divides the deviations of N - 1 by N, so that identical views reach
    C_ii = (N - 1) / N and not 1; it does not divide by F; each process correlates its own rows; and under
    autocast its matrix product runs in half precision.

    Args:
        redundancy_weight: weight of the off-diagonal terms, lambda in the paper.
        epsilon: added to the variance, so that a constant feature has correlation 0 and a finite gradient.

    Raises:
        ValueError: an argument is not a positive finite number.
    """

    def __init__(self, redundancy_weight: float = 0.0051, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.redundancy_weight = positive(redundancy_weight, "redundancy_weight")
        self.epsilon = positive(epsilon, "epsilon")

    def forward(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        """Return the loss, a scalar that is the same on every process. Computed in float32 or wider, autocast off.

        Args:
            view_1: `(N, F)` floating, N may differ between processes.
            view_2: `(N, F)`, row i is another view of the crop of row i of `view_1`.

        Raises:
            ValueError: shapes differ, or fewer than two rows in all processes together.
        """
        view_1, view_2 = paired_views(view_1, view_2)
        count = sum(row_counts(len(view_1), view_1.device))
        if count < 2:
            raise ValueError(f"Barlow Twins correlates over the batch and needs at least two crops, got {count}.")
        with torch.autocast(view_1.device.type, enabled=False):
            both = torch.cat([view_1, view_2], dim=1)  # (N, 2F): one collective for both views
            both = both - sum_over_processes(both.sum(dim=0)) / count
            variance = sum_over_processes(both.square().sum(dim=0)) / count
            one, two = (both * torch.rsqrt(variance + self.epsilon)).chunk(2, dim=1)
            correlation = sum_over_processes(one.mT @ two) / count  # (F, F)
            diagonal = correlation.diagonal()
            redundancy = (correlation - diagonal.diag()).square().sum()
            return ((diagonal - 1).square().sum() + self.redundancy_weight * redundancy) / len(diagonal)
