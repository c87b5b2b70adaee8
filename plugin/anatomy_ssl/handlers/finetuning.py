"""What fine-tuning needs: an encoder that waits while the new layers settle, and the best network on disk."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import nn

from anatomy_ssl.data.atomic import atomic_save
from anatomy_ssl.handlers.training import process_rank

logger = logging.getLogger(__name__)


class FreezeUntil:
    """Keeps a part of the network as it is for the first epochs: neither its weights nor its batch statistics move.

    Gradients are dropped before the optimiser's step rather than switched off, since distributed training expects a
    gradient for every parameter it was started with. While frozen the part also runs in evaluation mode, which MONAI's
    trainer would undo at every iteration: so it is set as the part is entered. Depends on the epoch alone, so that a
    resumed run goes on right.

    Args:
        module: the part, as a module of the network (`$@network_def.encoder`).
        epochs: number of epochs; 0 freezes nothing.
    """

    def __init__(self, module: nn.Module, epochs: int) -> None:
        self.module, self.epochs = module, epochs
        self.frozen = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, ahead of handlers that clip gradients."""
        if self.epochs > 0:
            self.module.register_forward_pre_hook(self._as_in_evaluation)
            engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.drop_gradients)
            engine.add_event_handler(Events.COMPLETED, self._thaw)

    def start_epoch(self, engine: Engine) -> None:
        """Freeze or thaw."""
        frozen = engine.state.epoch <= self.epochs
        if self.frozen and not frozen:
            logger.info("epoch %d: the frozen part trains from here on", engine.state.epoch)
        self.frozen = frozen

    def drop_gradients(self, engine: Engine) -> None:
        """Leave the optimiser nothing to step by."""
        if self.frozen:
            for parameter in self.module.parameters():
                parameter.grad = None

    def _thaw(self, engine: Engine) -> None:
        self.frozen = False

    def _as_in_evaluation(self, module: nn.Module, inputs: Any) -> None:
        if self.frozen:
            module.eval()


class SaveNetwork:
    """Writes the network: whenever it is the best so far by an evaluator's key metric, or when training ends.

    The file is a plain state dict, the form that `monai.bundle.load`, MONAI's model zoo and MONAI Label all read:
    `load` takes nothing from a dictionary around it, and does not say so. It is replaced in one step, where MONAI's
    `CheckpointSaver` writes in place, by the first process only. The handler belongs on the trainer and the evaluator,
    and into the `save_dict` of `TrainingCheckpoint`, so that a resumed run knows the best value of before.

    Args:
        network: what to save; a wrapper of distributed training is taken off.
        path: file to write.
        keep: "best", or where nothing is validated the end of training; "last", the end of training in any case, for
            few labels, of which none can be spared to choose by.

    Raises:
        ValueError: for any other `keep`.
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike[str], keep: str = "best") -> None:
        if keep not in ("best", "last"):
            raise ValueError(f"keep must be best or last, not {keep!r}")
        self.keep = keep
        self.network, self.path = getattr(network, "module", network), path
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that has a key metric, or with a trainer."""
        if not getattr(engine.state, "key_metric_name", None):
            engine.add_event_handler(Events.COMPLETED, self.after_training)
        elif self.keep == "best":
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.after_validation)

    def after_validation(self, engine: Any) -> None:
        """Write if the metric is higher than ever; one that is not a number chooses nothing, so the latest is kept."""
        name = engine.state.key_metric_name
        value = float(engine.state.metrics[name])
        undefined = math.isnan(value)
        if undefined:
            logger.warning("%s is not a number: the validation images may lack a class", name)
        if value > self.best or (undefined and self.best == -math.inf):
            self.best = self.best if undefined else value
            self._write(f"{name} {value:.4f}")

    def after_training(self, engine: Engine) -> None:
        """Write what no validation has chosen from."""
        if self.best == -math.inf:
            self._write("the end of training")

    def _write(self, reason: str) -> None:
        if process_rank() == 0:
            atomic_save(self.network.state_dict(), self.path)
            logger.info("wrote the network to %s (%s)", self.path, reason)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The best value so far."""
        return {"best": torch.tensor(self.best, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from the best value of before."""
        self.best = float(state["best"])
