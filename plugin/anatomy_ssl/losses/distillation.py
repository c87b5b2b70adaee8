"""Self-distillation: the student's distribution over prototypes against the teacher's, centred and sharpened."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .checks import float_rows, positive
from .gather import row_counts, sum_over_processes


class DistillationLoss(nn.Module):
    """Cross-entropy between the teacher's and the student's distribution of each row (DINO, Caron et al. 2021).

    With teacher logits t, student logits s and a centre c: H(t, s) = -sum softmax((t - c) / teacher_temperature) *
    log_softmax(s / student_temperature). c is the moving average of the teacher's mean logits, over both views and all
    processes; it moves after each loss of a training step (in training mode, with gradients enabled) and belongs into
    checkpoints. It starts with the first batch's mean rather than DINO's zero: what all rows of a new network share is
    several times as large as what sets them apart, so that until a centre has come up from zero all rows are taught one
    prototype. Computed in single precision at least.

    Args:
        num_prototypes: K.
        student_temperature: over 0.
        teacher_temperature: over 0; lower is sharper. `handlers.TeacherTemperature` warms it up.
        centre_momentum: share of the old centre that stays, 0 to 1.
        across: compare each view's student with the other view's teacher, instead of the same view's.

    Attributes:
        centre: `(K,)`, zeros until the first training step.

    Raises:
        ValueError: a temperature that is not positive, or a momentum that is not within 0 to 1.
    """

    centre: Tensor

    def __init__(
        self,
        num_prototypes: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.01,
        centre_momentum: float = 0.9,
        across: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= centre_momentum <= 1:
            raise ValueError(f"`centre_momentum` has to be within 0 to 1, got {centre_momentum}.")
        self.student_temperature = positive(student_temperature, "student_temperature")
        self.teacher_temperature = positive(teacher_temperature, "teacher_temperature")
        self.centre_momentum, self.across = centre_momentum, across
        self.register_buffer("centre", torch.zeros(num_prototypes))

    def forward(self, student_1: Tensor, student_2: Tensor, teacher_1: Tensor, teacher_2: Tensor) -> Tensor:
        """Return the mean over rows, views and processes, a scalar that is the same on every process.

        Args:
            student_1: `(..., K)` logits of the first views: one row a view, or one a token.
            student_2: `(..., K)`, of the second views.
            teacher_1: `(..., K)`, the teacher's.
            teacher_2: `(..., K)`.

        Raises:
            ValueError: shapes that differ, or another K.
        """
        logits = {"student_1": student_1, "student_2": student_2, "teacher_1": teacher_1, "teacher_2": teacher_2}
        if any(x.shape != student_1.shape or x.shape[-1] != len(self.centre) for x in logits.values()):
            found = ", ".join(f"{name} {tuple(x.shape)}" for name, x in logits.items())
            raise ValueError(f"All logits have to be one shape (..., {len(self.centre)}), got {found}.")
        s1, s2, t1, t2 = (float_rows(x.reshape(-1, x.shape[-1]), name) for name, x in logits.items())
        student = torch.cat([s2, s1] if self.across else [s1, s2])
        teacher = torch.cat([t1, t2]).detach()
        count = max(1, sum(row_counts(len(teacher), teacher.device)))
        mean = None
        if self.training and torch.is_grad_enabled():
            mean = sum_over_processes(teacher.sum(dim=0)) / count
            centre = self.centre.to(mean)
            self.centre = torch.where((centre == 0).all(), mean, centre)
        entropies = self.assignment(teacher) * torch.log_softmax(student / self.student_temperature, dim=1)
        if mean is not None:
            self.centre = torch.lerp(mean, self.centre, self.centre_momentum)
        return -sum_over_processes(entropies.sum()) / count

    def assignment(self, teacher: Tensor) -> Tensor:
        """Return the teacher's distributions `(..., K)` for its logits `(..., K)`; the centre stays."""
        teacher = teacher.to(torch.promote_types(teacher.dtype, torch.float32))
        return torch.softmax((teacher - self.centre.to(teacher)) / self.teacher_temperature, dim=-1)
