"""Schedules of a training's rates: functions of the step or epoch alone, so that a resumed run goes on right."""

from __future__ import annotations

import logging
import math
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from anatomy_ssl.losses.distillation import DistillationLoss

logger = logging.getLogger(__name__)


def half_cosine(start: float, end: float, progress: float) -> float:
    """The value between `start` and `end` at `progress` from 0 to 1, level at both ends; `end` beyond 1."""
    return start + (end - start) * (1 - math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2


class LearningRate:
    """Linear warm-up from 0 to each group's own rate, then half a cosine down to `min_lr`; set at every step.

    MONAI's `WarmupCosineSchedule` cuts its cosine off at the lowest rate, lifts a peak below that rate up to it, and is
    still rising when a run is shorter than its warm-up. Here the rate is never above the peak: where the peak is below
    `min_lr`, as small batches can bring about, it stays at the peak. The peaks are the rates that the optimizer has
    when this handler is made.

    Args:
        optimizer: whose groups' `lr` is set.
        warmup_epochs: length of the warm-up, may be a fraction; 0 starts at the peak.
        min_lr: rate of the last step.

    Raises:
        ValueError: if a number is negative, or, once it is attached, the warm-up leaves no epoch after it.
    """

    def __init__(self, optimizer: Optimizer, warmup_epochs: float = 50, min_lr: float = 1e-6) -> None:
        if warmup_epochs < 0 or min_lr < 0:
            raise _logged(f"warmup_epochs {warmup_epochs} and min_lr {min_lr} must not be negative")
        self.optimizer, self.warmup_epochs, self.min_lr = optimizer, warmup_epochs, min_lr
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        if max(self.peaks) <= min_lr:
            logger.warning("the learning rate %g stays as it is, being at most min_lr %g", max(self.peaks), min_lr)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        epochs = engine.state.max_epochs
        if epochs is not None and self.warmup_epochs and self.warmup_epochs >= epochs:
            raise _logged(
                f"a warm-up of {self.warmup_epochs:g} epochs leaves nothing of a run of {epochs}: lower warmup_epochs, "
                "or raise epochs"
            )
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def at(self, peak: float, step: int, steps: int, epoch_length: int) -> float:
        """Rate of a step, counted from 1 to `steps`, of a group with the given peak."""
        warmup = round(self.warmup_epochs * epoch_length)
        if step <= warmup:
            return peak * (step / warmup)
        return half_cosine(peak, min(self.min_lr, peak), (step - warmup) / max(1, steps - warmup))

    def __call__(self, engine: Engine) -> None:
        """Set the rates."""
        step, steps = _step(engine), _steps(engine)
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            group["lr"] = self.at(peak, step, steps, engine.state.epoch_length or 1)
        engine.state.metrics["learning_rate"] = max(group["lr"] for group in self.optimizer.param_groups)


class WeightDecay:
    """Moves the weight decay from `start` to `end` by half a cosine over all steps (DINO, Caron et al. 2021).

    Groups that start without weight decay, as biases and norms from `engines.decayed_parameters`, stay without.

    Args:
        optimizer: whose groups' `weight_decay` is set.
        start: of the first step.
        end: of the last step.

    Raises:
        ValueError: if a number is negative.
    """

    def __init__(self, optimizer: Optimizer, start: float = 0.04, end: float = 0.4) -> None:
        if start < 0 or end < 0:
            raise _logged(f"weight decay cannot be negative, got {start} to {end}")
        self.optimizer, self.start, self.end = optimizer, start, end
        self.decayed = [group["weight_decay"] != 0 for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the weight decay."""
        value = half_cosine(self.start, self.end, (_step(engine) - 1) / max(1, _steps(engine) - 1))
        for group, decayed in zip(self.optimizer.param_groups, self.decayed):
            group["weight_decay"] = value if decayed else 0.0
        engine.state.metrics["weight_decay"] = value


class TeacherTemperature:
    """Moves the teacher's temperature from `start` to that of the loss, in equal steps over the first epochs.

    Args:
        loss: a `DistillationLoss`, or a loss that holds some (`WeightedSumLoss`).
        start: temperature of the first epoch, over 0.
        warmup_epochs: the first epoch with the loss's own temperature; 0 and 1 leave the loss as it is.

    Raises:
        ValueError: if there is no `DistillationLoss`, or `start` is not positive.
    """

    def __init__(self, loss: nn.Module, start: float = 0.008, warmup_epochs: int = 30) -> None:
        self.losses = [module for module in loss.modules() if isinstance(module, DistillationLoss)]
        if not self.losses:
            raise _logged(f"{type(loss).__name__} holds no DistillationLoss whose temperature could be warmed up")
        if start <= 0:
            raise _logged(f"the temperature has to start over 0, got {start}")
        self.ends = [module.teacher_temperature for module in self.losses]
        self.start, self.warmup_epochs = start, warmup_epochs

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the temperature of the epoch."""
        progress = 1.0
        if self.warmup_epochs > 1:
            progress = min(1.0, (engine.state.epoch - 1) / (self.warmup_epochs - 1))
        for loss, end in zip(self.losses, self.ends):
            loss.teacher_temperature = self.start + (end - self.start) * progress
        engine.state.metrics["teacher_temperature"] = self.losses[0].teacher_temperature


def _step(engine: Engine) -> int:
    """Number of the step, from 1."""
    return max(1, engine.state.iteration)


def _steps(engine: Any) -> int:
    """Steps of the whole run."""
    return (engine.state.max_epochs or 1) * (engine.state.epoch_length or 1)


def _logged(message: str) -> ValueError:
    """The error, logged first: MONAI's bundle wraps what happens at construction in messages of its own."""
    logger.error("%s", message)
    return ValueError(message)
