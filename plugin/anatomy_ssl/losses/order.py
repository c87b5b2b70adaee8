"""Where does a cell belong? Order prediction over the cells of a view (POPAR, PEAC)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class CellOrderLoss(nn.Module):
    """Cross-entropy of the place that each cell comes from.

    Zhou et al. 2023 (arXiv 2312.00335), patch order prediction: mean over places and images. Where all processes hold
    equally many images, the gradients that distributed training averages are those of the whole batch.
    """

    def forward(self, logits: Tensor, order: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: `(N, T, T)`, for each place the scores of the cells that may be shown there.
            order: `(N, T)` integers, the cell that is shown at each place; `order[n, j] = j` in images left alone.

        Raises:
            ValueError: shapes that do not belong together.
        """
        if logits.ndim != 3 or logits.shape[1] != logits.shape[2] or order.shape != logits.shape[:2]:
            raise ValueError(
                f"`logits` has to be (N, T, T) and `order` (N, T), got {tuple(logits.shape)} and {tuple(order.shape)}."
            )
        return F.cross_entropy(logits.flatten(0, 1).float(), order.flatten())
