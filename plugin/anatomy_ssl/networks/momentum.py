"""A student and its slowly moving average, the teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
        student: any network that returns a dictionary of tensors. Called with a second argument, the dictionary of what
            the student has found for the same input, it is to act as the teacher: to give what a loss takes from the
            teacher, so that heads run only where they are used, and perhaps to make use of what the student found.
        shared: names of parts of the student whose weights the teacher takes as they are, without averaging. In the
            teacher they are in evaluation mode all the same.

    Raises:
        ValueError: if the student has no part of such a name.
    """

    def __init__(self, student: nn.Module, shared: Sequence[str] = ()) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        for name in shared:
            try:
                own, copied = student.get_submodule(name), self.teacher.get_submodule(name)
            except AttributeError as error:
                raise ValueError(f"{type(student).__name__} has no part {name!r} that a teacher could share") from error
            for theirs, mine in zip(own.modules(), copied.modules()):
                mine._parameters.update(theirs._parameters)

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
            found = self.teacher(x, {name: tensor.detach() for name, tensor in outputs.items()})
        return outputs | {f"teacher_{name}": tensor for name, tensor in found.items()}
