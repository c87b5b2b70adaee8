"""NT-Xent, the contrastive loss of SimCLR."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import paired_views, positive
from .gather import all_gather_rows, process_index, row_counts, sum_over_processes


class NTXentLoss(nn.Module):
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv 2002.05709, eq. 1).

    Each of the 2N views picks its partner among the 2N - 1 other views by cosine similarity / temperature; the mean
    over both directions. Several processes share the negatives of all of them, and each holds its own rows only: the
    largest tensor is `(2 N_local, 2 N_all)`.

    `monai.losses.ContrastiveLoss` is not used: it builds a `(2N, 2N, F)` tensor (16 GB at N = F = 1024), exponentiates
    without subtracting the maximum, and sees the negatives of its own process only.

    Args:
        temperature: tau in the paper.

    Raises:
        ValueError: `temperature` is not a positive finite number.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = positive(temperature, "temperature")

    def forward(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        """Return the loss, a scalar that is the same on every process. Computed in float32 or wider, autocast off.

        Args:
            view_1: `(N, F)` floating, N may differ between processes.
            view_2: `(N, F)`, row i is another view of the crop of row i of `view_1`.

        Raises:
            ValueError: shapes differ, or fewer than two rows in all processes together: a single crop has no negatives.
        """
        view_1, view_2 = paired_views(view_1, view_2)
        count = len(view_1)
        counts = [2 * each for each in row_counts(count, view_1.device)]
        if sum(counts) < 4:
            raise ValueError(f"NT-Xent needs negatives, so at least two crops in the batch, got {sum(counts) // 2}.")
        with torch.autocast(view_1.device.type, enabled=False):
            # The temperature goes into both factors, half each, rather than into a second similarity matrix.
            own = F.normalize(torch.cat([view_1, view_2]), dim=1) / self.temperature**0.5  # (2N, F)
            logits = own @ all_gather_rows(own, counts=counts).mT  # (2N, 2N of all processes)
            column = torch.arange(2 * count, device=own.device) + sum(counts[: process_index()])
            # A view is not its own candidate. The softmax of minus infinity passes no gradient back, so the filling
            # need not be recorded, which would cost one more matrix.
            logits.detach().scatter_(1, column[:, None], float("-inf"))
            total = F.cross_entropy(logits, column.roll(count), reduction="sum")
            return sum_over_processes(total) / sum(counts)
