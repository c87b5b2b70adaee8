"""Regression of the crop's centre, the direct baseline of ISImed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import float_rows, position_rows, positive
from .gather import row_counts, sum_over_processes


class CoordinateRegressionLoss(nn.Module):
    """Mean squared error between predicted and true crop centres, in units of a reference length.

    Mean over crops and axes of (p - c / reference_length)^2: the network predicts centres in units of the reference
    length, so `prediction * reference_length` is in mm. Unlike the distance loss it sees where the world's origin is:
    volumes have to lie in one frame. Baseline in the release of Jabareen et al. 2024 (arXiv 2410.16947).

    Args:
        reference_length: mm (the unit of the positions) per unit of the prediction.

    Raises:
        ValueError: `reference_length` is not a positive finite number.
    """

    def __init__(self, reference_length: float = 100.0) -> None:
        super().__init__()
        self.reference_length = positive(reference_length, "reference_length")

    def forward(self, prediction: Tensor, position: Tensor) -> Tensor:
        """Return the loss, a scalar that is the same on every process. Computed in float32 or wider, autocast off.

        Args:
            prediction: `(N, D)` floating, N may differ between processes.
            position: `(N, D)` crop centres, world mm (RAS+).

        Raises:
            ValueError: shapes differ, positions that are not finite, or no crop at all.
        """
        prediction = float_rows(prediction, "prediction")
        position = position_rows(position, prediction, "prediction")
        if position.shape != prediction.shape:
            raise ValueError(
                f"`prediction` {tuple(prediction.shape)} and `position` {tuple(position.shape)} have to be one shape; "
                "set the head's output size to the number of spatial dimensions."
            )
        count = sum(row_counts(prediction.numel(), prediction.device))
        if count == 0:
            raise ValueError("The batch holds no crops; check the sampler.")
        with torch.autocast(prediction.device.type, enabled=False):
            total = F.mse_loss(prediction, position / self.reference_length, reduction="sum")
            return sum_over_processes(total) / count
