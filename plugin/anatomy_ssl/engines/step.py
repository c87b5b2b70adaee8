"""How one step of a training is computed: in which precision, and in how many parts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from monai.engines import IterationEvents
from monai.inferers import SimpleInferer
from monai.utils.enums import CommonKeys as Keys

from anatomy_ssl.switches import switch

__all__ = ["AccumulatedStep", "AutocastInferer", "memory_format"]

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class AutocastInferer(SimpleInferer):
    """Runs the network in mixed precision on any device, and gives its outputs as float32.

    MONAI's trainers know CUDA alone (`torch.autocast("cuda")`), scale gradients where bfloat16 needs no scaling, and
    compute the loss in half precision too. Here only the network is under autocast.

    Args:
        precision: "float32" changes nothing; "bfloat16"; "float16", on CUDA alone and with the trainer's `amp: true`,
            which scales gradients.
        device: that the network is on.

    Raises:
        ValueError: for another word, or float16 on another device.
    """

    def __init__(self, precision: str = "float32", device: str | torch.device = "cpu") -> None:
        super().__init__()
        self.device_type = torch.device(device).type
        problem = ""
        if precision not in PRECISIONS:
            problem = f"precision {precision!r} is none of {', '.join(PRECISIONS)}"
        elif precision == "float16" and self.device_type != "cuda":
            problem = f"precision float16 needs CUDA, not {self.device_type}: take float32, or bfloat16"
        if problem:
            logger.error("%s", problem)  # MONAI's bundle wraps what happens at construction in messages of its own
            raise ValueError(problem)
        self.dtype = PRECISIONS[precision]
        if self.dtype is not None and self.device_type == "cpu":
            logger.warning("bfloat16 on a CPU: torch 2.13 computes wrong gradients of 3D convolutions on maps of 2^3")

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the network; its tensors, in dictionaries, lists and tuples too, are float32."""
        if self.dtype is None:
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast(self.device_type, dtype=self.dtype):
            outputs = super().__call__(inputs, network, *args, **kwargs)
        return _widened(outputs)


class AccumulatedStep:
    """`iteration_update` of MONAI's `SupervisedTrainer`: the batch goes through the network in parts, to save memory.

    The gradients of all parts are added before the one step of the optimiser. An iteration stays one step: clipping,
    the teacher, schedules, checkpoints and the place in a run are what they are without it. (MONAI's own
    `accumulation_steps`, since 1.6, joins several iterations: handlers would clip parts, and a run that is stopped
    between them would lose some.) For a loss that is a mean over samples the gradient is that of the whole batch. What
    compares samples or is learned over the batch (negatives, batch normalisation, the centre of a distillation) sees a
    part at a time.

    Args:
        parts: of a batch; where it has fewer samples, each is a part.
        together: consecutive samples that are not parted, as crops of one volume.

    Raises:
        ValueError: if a number is under 1.
    """

    def __init__(self, parts: int, together: int = 1) -> None:
        if parts < 1 or together < 1:
            problem = f"accumulate must be 1 or more parts of 1 or more samples, got {parts} of {together}"
            logger.error("%s", problem)
            raise ValueError(problem)
        self.parts, self.together = parts, together

    def __call__(self, engine: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """One step; the output is the last part's, with the loss of the whole batch."""
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        parts = list(split_batch(batch, self.parts, self.together))
        means: dict[str, torch.Tensor] = {}
        for number, (part, share) in enumerate(parts, start=1):
            # distributed training adds gradients up once, after the last part
            waiting = getattr(engine.network, "no_sync", nullcontext) if number < len(parts) else nullcontext
            with waiting():
                values = _backward(engine, part, share)
            for name, value in values.items():
                means[name] = means.get(name, torch.zeros_like(value)) + share * value
        engine.state.output[Keys.LOSS] = means["loss"]
        if hasattr(engine.loss_function, "values"):
            engine.loss_function.values = means  # handlers log them
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if engine.scaler is None:
            engine.optimizer.step()
        else:
            engine.scaler.step(engine.optimizer)
            engine.scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def split_batch(batch: Mapping[str, Any], parts: int, together: int = 1) -> Iterator[tuple[dict[str, Any], float]]:
    """Cut a collated batch into parts of nearly equal size.

    Args:
        batch: tensors `(N, ...)` and lists of N.
        parts: at most so many.
        together: consecutive samples that stay in one part.

    Yields:
        Parts, and the share of the batch's samples in each.

    Raises:
        ValueError: where entries differ in length.
    """
    lengths = {name: len(value) for name, value in batch.items()}
    samples = max(lengths.values())
    if min(lengths.values()) != samples:
        raise ValueError(f"a batch with entries of different lengths cannot be cut into parts: {lengths}")
    groups = -(-samples // together)
    parts = min(parts, groups)
    borders = [min(samples, groups * number // parts * together) for number in range(parts + 1)]
    for start, stop in pairwise(borders):
        yield {name: value[start:stop] for name, value in batch.items()}, (stop - start) / samples


def memory_format(channels_last: bool | str, spatial_dims: int) -> torch.memory_format:
    """What `network.to(memory_format=...)` is to be given; maps follow the convolutions' weights.

    Args:
        channels_last: a bool, or its word from the command line.
        spatial_dims: of the network, 2 or 3.
    """
    if not switch(channels_last, "channels_last"):
        return torch.preserve_format
    return torch.channels_last_3d if spatial_dims == 3 else torch.channels_last


def _backward(engine: Any, part: dict[str, Any], share: float) -> dict[str, torch.Tensor]:
    """Forward and backward of a part whose loss counts as `share`; the terms of its loss, detached."""
    inputs, targets, *rest = engine.prepare_batch(part, engine.state.device, engine.non_blocking, **engine.to_kwargs)
    args, kwargs = rest or ((), {})
    output = engine.state.output = {Keys.IMAGE: inputs, Keys.LABEL: targets}
    output[Keys.PRED] = engine.inferer(inputs, engine.network, *args, **kwargs)
    engine.fire_event(IterationEvents.FORWARD_COMPLETED)
    loss = output[Keys.LOSS] = engine.loss_function(output[Keys.PRED], targets).mean()
    engine.fire_event(IterationEvents.LOSS_COMPLETED)
    scaled = loss if engine.scaler is None else engine.scaler.scale(loss)
    (scaled * share).backward()
    return {**getattr(engine.loss_function, "values", {}), "loss": loss.detach()}


def _widened(outputs: Any) -> Any:
    """Floating tensors as float32, in the same containers."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, Mapping):
        return {name: _widened(value) for name, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_widened(value) for value in outputs)
    return outputs
