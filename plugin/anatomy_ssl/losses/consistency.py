"""Global and local consistency of two views between a student and its teacher (PEAC)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import float_rows
from .gather import row_counts, sum_over_processes


class GlobalConsistencyLoss(nn.Module):
    """Squared distance of normalised image embeddings, each view's student against the other view's teacher.

    Zhou et al. 2023 (arXiv 2312.00335), global consistency: mean over images of ||s1 - t2||^2 + ||s2 - t1||^2 with unit
    vectors, 0 to 8. The released code takes the mean over the embedding's 8,192 elements times 100,000, that is this
    loss times 12.2.

    Args:
        centre: subtract the batch's mean embedding first (both views, all processes; the student's own and the
            teacher's own), since the loss has its minimum where all images have one embedding. The paper does not.
    """

    def __init__(self, centre: bool = False) -> None:
        super().__init__()
        self.centre = centre

    def forward(self, student_1: Tensor, student_2: Tensor, teacher_1: Tensor, teacher_2: Tensor) -> Tensor:
        """Return the loss, a scalar that is the same on every process: the mean over the images of all of them.

        Args:
            student_1: `(N, F)` embeddings of the first views; NaN or infinity give a loss that is not finite.
            student_2: `(N, F)`, of the second views of the same images.
            teacher_1: `(N, F)`, the teacher's.
            teacher_2: `(N, F)`.

        Raises:
            ValueError: shapes that differ.
        """
        views = {"student_1": student_1, "student_2": student_2, "teacher_1": teacher_1, "teacher_2": teacher_2}
        rows = _rows(views)
        if self.centre:
            means = [_mean_row(*rows[:2]), _mean_row(*rows[2:])]
            rows = [row - means[number // 2] for number, row in enumerate(rows)]
        s1, s2, t1, t2 = (F.normalize(row, dim=1) for row in rows)
        distance = (s1 - t2).square().sum() + (s2 - t1).square().sum()
        return sum_over_processes(distance) / sum(row_counts(len(s1), s1.device))


class LocalConsistencyLoss(nn.Module):
    """Squared distance of normalised token embeddings, where two views show the same cell of the image.

    Zhou et al. 2023 (arXiv 2312.00335), local consistency: over the cells that both views show, half of ||s1 - t2||^2 +
    ||s2 - t1||^2 with unit vectors. By default the mean over all such pairs; in the paper the sum over an image's
    pairs, and the mean over the images that have not been shuffled.

    Nothing in this loss holds the embeddings of different cells apart: its minimum is one embedding for all. `centre`
    subtracts the mean of an image's embeddings (both views; the student's own and the teacher's own) before they become
    unit vectors: what the cells of an image share is the global loss's matter. It delays a collapse but does not rule
    it out: a few long embeddings can carry the mean (docs/results.md). Watch `local_gap` of `metrics.GridQuality`.

    Args:
        reduction: "pairs", or "images" for the paper's.
        centre: subtract the image's mean embedding; the paper does not.

    Raises:
        ValueError: `reduction` is neither.
    """

    def __init__(self, reduction: str = "pairs", centre: bool = False) -> None:
        super().__init__()
        if reduction not in ("pairs", "images"):
            raise ValueError(f"`reduction` has to be 'pairs' or 'images', got {reduction!r}.")
        self.reduction, self.centre = reduction, centre

    def forward(
        self,
        student_1: Tensor,
        student_2: Tensor,
        teacher_1: Tensor,
        teacher_2: Tensor,
        match: Tensor,
        ordered: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar that is the same on every process; 0 where no process has a pair.

        Args:
            student_1: `(N, T, F)` embeddings of the cells of the first views.
            student_2: `(N, T, F)`, of the second views.
            teacher_1: `(N, T, F)`, the teacher's.
            teacher_2: `(N, T, F)`.
            match: `(N, T)` integers, for each cell of the first view the cell of the second that shows the same, or -1
                (`anatomy_ssl.transforms.match_cells`).
            ordered: `(N,)` booleans, images whose first view has its cells in their true order; others do not count.
                None counts all.

        Raises:
            ValueError: shapes that do not belong together.
        """
        shape = student_1.shape
        if student_1.ndim != 3 or match.shape != shape[:2] or (ordered is not None and ordered.shape != shape[:1]):
            found = [tuple(shape), tuple(match.shape), None if ordered is None else tuple(ordered.shape)]
            raise ValueError(f"Tokens (N, T, F) need `match` (N, T) and `ordered` (N,), got {found}.")
        views = {"student_1": student_1, "student_2": student_2, "teacher_1": teacher_1, "teacher_2": teacher_2}
        rows = [row.unflatten(0, shape[:2]) for row in _rows({name: x.flatten(0, 1) for name, x in views.items()})]
        if self.centre:
            means = [torch.cat(pair, dim=1).mean(dim=1, keepdim=True) for pair in (rows[:2], rows[2:])]  # (N, 1, F)
            rows = [row - means[number // 2] for number, row in enumerate(rows)]
        s1, s2, t1, t2 = (F.normalize(row.flatten(0, 1), dim=1) for row in rows)
        ordered = torch.ones_like(match[:, 0], dtype=torch.bool) if ordered is None else ordered
        shown = (match >= 0) & ordered[:, None]
        first = shown.flatten().nonzero()[:, 0]
        cells = torch.arange(len(match), device=match.device)[:, None] * shape[1]  # the images' first rows
        second = (match + cells).flatten()[first]
        distance = (s1[first] - t2[second]).square().sum() + (s2[second] - t1[first]).square().sum()
        count = len(first) if self.reduction == "pairs" else int(ordered.sum())
        return sum_over_processes(distance) / (2 * max(1, sum(row_counts(count, s1.device))))


def _rows(views: Mapping[str, Tensor]) -> list[Tensor]:
    """Rows `(N, F)` of both views of student and teacher, widened to float32 at least."""
    rows = [float_rows(view, name) for name, view in views.items()]
    if len({row.shape for row in rows}) != 1:
        shapes = ", ".join(f"{name} {tuple(row.shape)}" for name, row in views.items())
        raise ValueError(f"Both views of student and teacher have to be one shape, got {shapes}.")
    return rows


def _mean_row(view_1: Tensor, view_2: Tensor) -> Tensor:
    """The mean `(F,)` of both views over the rows of all processes."""
    count = sum(row_counts(2 * len(view_1), view_1.device))
    return sum_over_processes(view_1.sum(dim=0) + view_2.sum(dim=0)) / max(1, count)
