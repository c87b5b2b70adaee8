"""Embeddings whose distances are the crops' distances in the body (ISImed)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import float_rows, position_rows, positive
from .gather import all_gather_rows, process_index, row_counts, sum_over_processes


class PhysicalDistanceLoss(nn.Module):
    """Mean squared error between distances of embeddings and physical distances of the crops' centres.

    The only equation of Jabareen et al. 2024 (arXiv 2410.16947), MSE(D_latent, D_physical), over the pairs i < j:
    mean of (||z_i - z_j|| - ||c_i - c_j|| / reference_length)^2. The paper's mean runs over the full N x N matrix,
    whose zero diagonal makes it smaller by the factor (N - 1) / N and changes nothing else.

    Only differences of positions enter, so the loss does not see where the world's origin is, nor a rotation of it.
    Work and memory for `same_subject` are the sum of squared crops per subject, not N^2.

    Distances are computed in float32 (float64 for float64 embeddings) with autocast off. TF32 matrix products, which
    torch leaves off unless asked, would cost accuracy of small distances where more than 25 crops are compared.

    Args:
        reference_length: the length that one unit of latent distance stands for, in mm (in the unit of the positions).
        pairs: `same_subject` compares crops of one subject only; `all` compares every crop with every other, also
            across processes, which has a meaning only where all volumes lie in one atlas frame. The paper's setting is
            `all` with `reference_length=1` and positions in voxels.

    Raises:
        ValueError: `reference_length` is not positive or `pairs` is unknown.
    """

    def __init__(self, reference_length: float = 100.0, pairs: str = "same_subject") -> None:
        super().__init__()
        if pairs not in ("same_subject", "all"):
            raise ValueError(f"`pairs` has to be 'same_subject' or 'all', got {pairs!r}.")
        self.reference_length = positive(reference_length, "reference_length")
        self.pairs = pairs

    def forward(self, embedding: Tensor, position: Tensor, subject: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar that is the same on every process: the mean over the pairs of all of them.

        Args:
            embedding: `(N, F)` floating. NaN or infinity in it gives a loss that is not finite.
            position: `(N, D)` crop centres, world mm (RAS+).
            subject: `(N,)` integers, which patient (or scan, where scans of one patient have frames of their own) each
                crop is of, in any order; on the CPU it saves waiting for the
                device. Needed for `same_subject`, whose pairs are formed within a process: all crops of a patient in
                a batch belong in one process.

        Raises:
            ValueError: shapes that do not belong together, positions that are not finite, or a batch without a pair.
        """
        embedding = float_rows(embedding, "embedding")
        position = position_rows(position, embedding, "embedding")
        with torch.autocast(embedding.device.type, enabled=False):
            if self.pairs == "all":
                return self._all_pairs(embedding, position)
            return self._same_subject_pairs(embedding, position, subject)

    def _same_subject_pairs(self, embedding: Tensor, position: Tensor, subject: Tensor | None) -> Tensor:
        if subject is None or subject.shape != embedding.shape[:1] or subject.is_floating_point():
            found = "None" if subject is None else f"{tuple(subject.shape)} of {subject.dtype}"
            raise ValueError(f"pairs='same_subject' needs `subject` as ({len(embedding)},) integers, got {found}.")
        # Empty where no subject has two crops, but attached to the graph, so that every process runs the same backward.
        total = embedding[:0].sum()
        count = 0
        for rows in subject_blocks(subject):
            crops = rows.shape[1]
            rows = rows.to(embedding.device, non_blocking=True)
            total = total + self._squared_errors(embedding[rows], position[rows], 0, crops)
            count += rows.numel() * (crops - 1)
        count = sum(row_counts(count, embedding.device))
        if count == 0:
            raise ValueError(
                "The batch holds no two crops of one subject; sample several crops per volume (crops_per_volume >= 2)."
            )
        return sum_over_processes(total) / count

    def _all_pairs(self, embedding: Tensor, position: Tensor) -> Tensor:
        counts = row_counts(len(embedding), embedding.device)
        crops = sum(counts)
        if crops < 2:
            raise ValueError(f"pairs='all' needs at least two crops in the batch, got {crops}.")
        start = sum(counts[: process_index()])
        embeddings = all_gather_rows(embedding, counts=counts)[None]
        positions = all_gather_rows(position, counts=counts)[None]
        total = self._squared_errors(embeddings, positions, start, start + len(embedding))
        return sum_over_processes(total) / (crops * (crops - 1))

    def _squared_errors(self, embedding: Tensor, position: Tensor, start: int, stop: int) -> Tensor:
        """Sum the squared errors of rows `start` to `stop` of each block against all other rows of the block.

        Every unordered pair is met twice, which the callers' counts allow for. `torch.cdist` has the subgradient 0
        where two rows coincide.

        Args:
            embedding: `(S, K, F)` blocks of K rows.
            position: `(S, K, D)` in mm.
            start: first row.
            stop: row after the last.
        """
        # From 26 rows on torch.cdist takes distances from a matrix product of the rows, which rounds relative to the
        # rows' norms: off centre it would lose small distances. Distances do not depend on the shift, nor do gradients.
        embedding = embedding - embedding.detach().mean(dim=1, keepdim=True)
        latent = torch.cdist(embedding[:, start:stop], embedding)
        physical = torch.cdist(position[:, start:stop], position, compute_mode="donot_use_mm_for_euclid_dist")
        # The pairs of a row with itself add nothing: 0 in both, or rounding where latent comes from the matrix product.
        return F.mse_loss(latent, physical / self.reference_length, reduction="sum")


def subject_blocks(subject: Tensor) -> list[Tensor]:
    """Group rows by subject, subjects with equally many rows together, so that each group is one batched computation.

    Args:
        subject: `(N,)` integers in any order, on any device.

    Returns:
        For each number K >= 2 of rows that a subject has, `(S, K)` row indices on the CPU, one line per subject.
    """
    subject = subject.as_subclass(Tensor).cpu()
    order = torch.argsort(subject, stable=True)
    _, sizes = torch.unique_consecutive(subject[order], return_counts=True)
    starts = sizes.cumsum(0) - sizes
    return [order[starts[sizes == size, None] + torch.arange(size)] for size in sizes.unique().tolist() if size > 1]
