"""Which findings does an image have? Binary or categorical cross-entropy where some labels are not known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import float_rows
from .gather import row_counts, sum_over_processes


class MultiLabelLoss(nn.Module):
    """Mean cross-entropy over the labels that are known: NaN counts neither in the sum nor in the number.

    Binary for each label by default. With `exclusive`, categorical over the K labels, of which an image has one: the
    mean over the images whose labels are all known. A batch in which nothing is known costs 0.

    Args:
        pos_weight: K positive weights of the labels' ones, as in `torch.nn.BCEWithLogitsLoss`; with `exclusive`, of the
            classes.
        exclusive: whether the labels are classes that exclude one another.

    Raises:
        ValueError: a weight that is not positive.
    """

    def __init__(self, pos_weight: Sequence[float] | None = None, exclusive: bool = False) -> None:
        super().__init__()
        if pos_weight is not None and not all(weight > 0 for weight in pos_weight):
            raise ValueError(f"`pos_weight` has to be one positive number for each label, got {pos_weight}.")
        self.pos_weight = None if pos_weight is None else [float(weight) for weight in pos_weight]
        self.exclusive = exclusive

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar that is the same on every process: the mean over the labels of all of them.

        Args:
            logits: `(N, K)` floating; computed in float32 or wider, autocast off.
            target: `(N, K)` of 0 and 1, NaN where a label is not known.

        Raises:
            ValueError: shapes that differ, or not K weights.
        """
        logits, target = float_rows(logits, "logits"), float_rows(target, "target")
        if logits.shape != target.shape:
            raise ValueError(
                f"`logits` {tuple(logits.shape)} and `target` {tuple(target.shape)} have to be one shape (N, K)."
            )
        weight = None if self.pos_weight is None else logits.new_tensor(self.pos_weight)
        if weight is not None and len(weight) != logits.shape[1]:
            raise ValueError(f"`pos_weight` has {len(weight)} numbers for {logits.shape[1]} labels.")
        known, filled = ~target.isnan(), target.nan_to_num().to(logits.dtype)
        with torch.autocast(logits.device.type, enabled=False):
            if self.exclusive:
                known = known.all(dim=1)
                each = F.cross_entropy(logits, filled, weight=weight, reduction="none")  # (N,)
            else:
                each = F.binary_cross_entropy_with_logits(logits, filled, pos_weight=weight, reduction="none")  # (N, K)
            total = sum_over_processes(torch.where(known, each, 0.0).sum())
            return total / max(1, sum(row_counts(int(known.sum()), logits.device)))
