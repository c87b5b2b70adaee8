"""A student and its slowly moving average, the teacher."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["StudentTeacher"]


class StudentTeacher(nn.Module):
    """A network beside an exponential moving average of itself (mean teacher, Tarvainen and Valpola 2017).

    The teacher starts as a copy, never gets a gradient, and stays in evaluation mode whatever the trainer sets: dropout
    and stochastic depth are the student's alone. Its weights are moved by the handler `MomentumTeacher`. Weights are
    named `student.*` and `teacher.*`, all in one checkpoint.

    Args:
        student: any network that returns a dictionary of tensors. Its argument `teacher=True` asks for the outputs that
            a loss takes from the teacher, so that heads run only where they are used.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> StudentTeacher:
        """Set the student's mode alone."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Any) -> dict[str, torch.Tensor]:
        """Run both on the same input.

        Args:
            x: input of the student.

        Returns:
            The student's outputs, and the teacher's under `teacher_NAME`, detached.
        """
        outputs = dict(self.student(x))
        with torch.no_grad():
            found = self.teacher(x, teacher=True)
        return outputs | {f"teacher_{name}": tensor for name, tensor in found.items()}
