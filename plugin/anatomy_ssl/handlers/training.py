"""What every run of ours needs besides MONAI's handlers: seeds, gradient clipping, guards, the terms of the loss."""

from __future__ import annotations

import logging
import math
import random
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import IterationEvents

logger = logging.getLogger(__name__)


def process_rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class SeedIterations:
    """Seeds every generator anew at each iteration, from the run's seed, the iteration and the process.

    What is random on the device (distortions, dropout, drop-path) is then the same after a resume, without saving
    states of generators, and differs between processes.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python, NumPy and torch (all devices)."""
        sequence = np.random.SeedSequence([self.seed, engine.state.iteration, process_rank()])
        value = int(sequence.generate_state(1)[0])
        random.seed(value)
        np.random.seed(value)  # noqa: NPY002 - for third-party code that draws from the global generator
        torch.manual_seed(value)


class ClipGradients:
    """Clips the norm of gradients before each optimiser step; right under gradient scaling.

    Args:
        parameters: of the network.
        max_norm: Euclidean norm over all gradients; None leaves them.
        each: clip the gradient of every parameter by itself (DINO), so that the direction of the whole may change.

    Raises:
        FloatingPointError: when gradients are not finite and no gradient scaler skips the step.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], max_norm: float | None, each: bool = False) -> None:
        self.parameters, self.max_norm, self.each = list(parameters), max_norm, each

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Clip."""
        if self.max_norm is None:
            return
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        if self.each:
            norm = _clip_each(self.parameters, self.max_norm)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        # under gradient scaling such steps are normal, and skipped
        if engine.scaler is None and not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradients are not finite at epoch {engine.state.epoch}, iteration {engine.state.iteration}, "
                "though the loss is. The weights are not touched; lower the learning rate, or train in full precision"
            )


def _clip_each(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clip gradients one by one; the norm of all of them, before. In a few calls, where a loop takes hundreds."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.stack(list(norms)).norm()


class LossTerms:
    """Puts the mean of each term of the loss over the epoch into the engine's metrics, as `loss` and `loss_TERM`.

    TensorBoard, MLflow and the console then show them with MONAI's own handlers.

    Args:
        loss: a `WeightedSumLoss`, whose `values` hold the terms of the last call.
    """

    def __init__(self, loss: Any) -> None:
        self.loss = loss
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, ahead of the handlers that write metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)

    def reset(self, engine: Engine) -> None:
        """Forget the last epoch."""
        self.sums, self.count = {}, 0

    def add(self, engine: Engine) -> None:
        """Add the last iteration's terms; stays on the device."""
        for name, value in self.loss.values.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.count += 1

    def report(self, engine: Engine) -> None:
        """Write the means over iterations and processes."""
        for name, total in self.sums.items():
            mean = total / self.count
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(mean)
                mean = mean / dist.get_world_size()
            engine.state.metrics["loss" if name == "loss" else f"loss_{name}"] = float(mean)


class StopOnNonFiniteLoss:
    """Ends training before a NaN or infinite loss reaches the weights, and says which term it came from.

    Args:
        loss: a `WeightedSumLoss`, or any other, of which only the sum is known.
        output_dir: where the last good checkpoint lies, for the message.

    Raises:
        FloatingPointError: when a term is not finite.
    """

    def __init__(self, loss: Any, output_dir: str = "") -> None:
        self.loss, self.output_dir = loss, output_dir

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Check the last loss."""
        if torch.isfinite(engine.state.output["loss"]):
            return
        values = getattr(self.loss, "values", {"loss": engine.state.output["loss"]})
        terms = ", ".join(f"{name} = {float(value):g}" for name, value in values.items())
        raise FloatingPointError(
            f"the loss is not finite at epoch {engine.state.epoch}, iteration {engine.state.iteration} ({terms}). The "
            f"weights are not touched; the last checkpoint is in {self.output_dir or 'output_dir'}. Lower the learning "
            "rate or the weight of the term, clip gradients, or train without half precision"
        )


class CollapseAlarm:
    """Warns when embeddings collapse, by the metrics of a validation epoch.

    Args:
        min_rankme: effective rank under which the embedding counts as collapsed. ISImed aims at a three-dimensional
            manifold, so its rank is low by nature: alarm only under 3.
        min_spread: mean standard deviation of the features under which all crops count as embedded in one point.
    """

    def __init__(self, min_rankme: float = 3.0, min_spread: float = 1e-4) -> None:
        self.min_rankme, self.min_spread = min_rankme, min_spread

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare the metrics with the bounds; also raises the metric `collapsed` to 1 for the curves."""
        metrics = engine.state.metrics
        low = [
            f"{name} = {metrics[name]:.4g} (under {bound:g})"
            for name, bound in (("rankme", self.min_rankme), ("spread", self.min_spread))
            if name in metrics and not (math.isfinite(metrics[name]) and metrics[name] >= bound)
        ]
        metrics["collapsed"] = float(bool(low))
        if low:
            logger.warning("the embedding is collapsing: %s", ", ".join(low))


class Progress:
    """A progress bar over the iterations of an epoch with the loss; quiet where there is no terminal."""

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if process_rank() == 0 and sys.stderr.isatty():
            ProgressBar(desc="epoch").attach(engine, output_transform=lambda output: {"loss": float(output["loss"])})
