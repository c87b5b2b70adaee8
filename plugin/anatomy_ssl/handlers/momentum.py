"""The teacher's moving average, and its momentum over the steps of a training."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from anatomy_ssl.handlers.schedules import half_cosine

__all__ = ["MomentumTeacher"]


class MomentumTeacher:
    """Moves a teacher towards its student after every step of the optimiser.

    teacher = m * teacher + (1 - m) * student, with m rising from `momentum` to `final_momentum` by half a cosine over
    all steps of the run (BYOL, Grill et al. 2020, arXiv 2006.07733, section 3.2). It depends on the step alone, so that
    a resumed run goes on right. Buffers (batch statistics) are copied. All tensors are moved in one call, several times
    faster than a loop over them; ignite's `EMAHandler` counts its momentum the other way round and loops.

    Args:
        network: a `StudentTeacher`, or a wrapper of distributed training around one.
        momentum: m of the first step, 0 to 1.
        final_momentum: m of the last step, 0 to 1.

    Raises:
        ValueError: if a momentum is not within 0 to 1.
    """

    def __init__(self, network: nn.Module, momentum: float = 0.999, final_momentum: float = 1.0) -> None:
        if not (0 <= momentum <= 1 and 0 <= final_momentum <= 1):
            raise ValueError(f"momentum {momentum} and final_momentum {final_momentum} must be within 0 to 1")
        pair: Any = getattr(network, "module", network)
        self.student, self.teacher = pair.student, pair.teacher
        self.momentum, self.final_momentum = momentum, final_momentum

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def at(self, step: int, steps: int) -> float:
        """Momentum of a step, counted from 1 to `steps`."""
        return half_cosine(self.momentum, self.final_momentum, (step - 1) / max(1, steps - 1))

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Move the teacher."""
        steps = (engine.state.max_epochs or 1) * (engine.state.epoch_length or 1)
        weight = 1 - self.at(engine.state.iteration, steps)
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), weight)
        for mine, theirs in zip(self.teacher.buffers(), self.student.buffers()):
            mine.copy_(theirs)
