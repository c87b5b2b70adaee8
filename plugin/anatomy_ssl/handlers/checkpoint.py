"""Stop anywhere, go on as if nothing had happened."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from anatomy_ssl.data.atomic import atomic_save, safe_load
from anatomy_ssl.data.sampler import EpochSampler
from anatomy_ssl.handlers.training import process_rank
from anatomy_ssl.weights.record import save_encoder, training_record

logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """Keeps `checkpoint.pt` of a run up to date, resumes from it, and saves on SIGTERM before the process ends.

    MONAI's `CheckpointSaver` writes in place, so that a process killed while it writes leaves half a file, and saves at
    epoch ends only. Here the file is replaced in one step, and a run may be stopped within an epoch: with
    `EpochSampler`, `ScanDataset` and `SeedIterations`, everything random is a function of seed, epoch, iteration and
    item, so that the resumed run comes to the same weights as one that was not stopped. Put it last in the list of
    handlers: what others do at the end of an epoch (step the learning rate, validate) then belongs to the checkpoint.

    Args:
        save_dir: folder of `checkpoint.pt`.
        save_dict: named objects with `state_dict` and `load_state_dict`: model, optimizer, lr_scheduler. The model's
            entry is a plain state dict without the prefixes of `DistributedDataParallel`.
        sampler: skips what a stopped epoch had seen before.
        batch_size: items of the sampler that make one iteration.
        resume: True goes on from `checkpoint.pt` and fails without one; "auto" goes on if there is one; False starts
            anew and refuses to write over an earlier run.
        interval: epochs between checkpoints.
        provenance: plain values that say where the weights come from; the checkpoint keeps them, with versions and
            epochs, for `python -m anatomy_ssl export`.

    Raises:
        FileNotFoundError: on resume without a checkpoint.
        FileExistsError: without resume, where a checkpoint of an earlier run exists.
        ValueError: when the checkpoint does not fit the configuration.
        SystemExit: 143 (128 + SIGTERM), after the checkpoint of a run that was told to stop is written.
    """

    filename = "checkpoint.pt"

    def __init__(
        self,
        save_dir: str,
        save_dict: Mapping[str, Any],
        sampler: EpochSampler | None = None,
        batch_size: int = 1,
        resume: bool | str = False,
        interval: int = 1,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        # the command line gives words where YAML gives values
        words: dict[str, bool | str] = {"true": True, "false": False, "auto": "auto"}
        if str(resume).lower() not in words:
            raise ValueError(f"resume must be true, false or 'auto', not {resume!r}")
        self.path = Path(save_dir) / self.filename
        self.objects = {k: getattr(v, "module", v) if k == "model" else v for k, v in save_dict.items()}
        self.resume = words[str(resume).lower()]
        self.sampler, self.batch_size, self.interval = sampler, batch_size, interval
        self.stop_requested = self._stop_agreed = False
        self.provenance = provenance
        self._previous_handler: Any = None
        self._check_folder()

    def _check_folder(self) -> None:
        """Refuse to write over a run, or to resume one that is not there, before anything is loaded."""
        error: OSError | None = None
        if self.path.exists() and not self.resume:
            remedy = "go on with --resume true, or give another --output_dir"
            error = FileExistsError(f"{self.path} is the checkpoint of an earlier run: {remedy}")
        elif self.resume is True and not self.path.exists():
            error = FileNotFoundError(f"{self.path} does not exist: there is no run to resume there")
        if error:
            logger.error("%s", error)  # MONAI's bundle wraps what happens at construction in messages of its own
            raise error

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.stop_if_told)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.TERMINATE, self.leave)

    def start(self, engine: Engine) -> None:
        """Load the checkpoint if there is one to go on from, and listen for SIGTERM."""
        if self.resume and self.path.exists():
            self.load(engine)
        try:
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
        except ValueError:
            logger.debug("not in the main thread: SIGTERM is not handled")

    def load(self, engine: Any) -> None:
        """Restore every object and the place in the run."""
        checkpoint = safe_load(self.path)
        missing = [name for name in (*self.objects, "progress") if name not in checkpoint]
        progress = checkpoint.get("progress", {})
        if missing:
            raise ValueError(f"{self.path} has no {', '.join(missing)}: it is not a checkpoint of this configuration")
        if progress["epoch_length"] != engine.state.epoch_length:
            raise ValueError(
                f"{self.path} was written with {progress['epoch_length']} iterations an epoch, this run has "
                f"{engine.state.epoch_length}: resume with the same data, batch size and number of processes"
            )
        for name, item in self.objects.items():
            try:
                item.load_state_dict(checkpoint[name])
            except (RuntimeError, ValueError, KeyError) as error:
                cause = " ".join(str(error).split())[:300]
                raise ValueError(f"the {name} of {self.path} does not fit this configuration: {cause}") from error
        if checkpoint.get("scaler") and engine.scaler is not None:
            engine.scaler.load_state_dict(checkpoint["scaler"])
        engine.state.iteration = progress["iteration"]
        engine.state.epoch = progress["iteration"] // progress["epoch_length"]
        if self.sampler is not None:
            self.sampler.skip = progress["iteration"] % progress["epoch_length"] * self.batch_size
        logger.info("resumed from %s at epoch %d, iteration %d", self.path, engine.state.epoch, engine.state.iteration)

    def save(self, engine: Any) -> None:
        """Replace the checkpoint in one step; only the first process writes."""
        if process_rank() > 0:
            return
        state = {name: item.state_dict() for name, item in self.objects.items()}
        state["progress"] = {"iteration": engine.state.iteration, "epoch_length": engine.state.epoch_length}
        if getattr(engine, "scaler", None) is not None:
            state["scaler"] = engine.scaler.state_dict()
        if self.provenance is not None:
            state["provenance"] = training_record(self.provenance, engine)
        atomic_save(state, self.path)

    def stop_if_told(self, engine: Engine) -> None:
        """After a signal to any process: save and leave, all processes at the same iteration."""
        if not self._told_to_stop(engine):
            return
        self.stop_requested = self._stop_agreed = True  # maybe it was another process that got the signal
        at_epoch_end = engine.state.iteration % (engine.state.epoch_length or 1) == 0
        if at_epoch_end:
            return  # the rest of the epoch's end (learning rate, validation) belongs to the checkpoint
        self.save(engine)
        engine.terminate()

    def end_epoch(self, engine: Engine) -> None:
        """Save at every `interval`-th epoch, and leave where a stop was agreed on at the epoch's last iteration."""
        # a signal that came since then is one process's own: all of them hear of it at the next iteration
        stop = self._stop_agreed and engine.state.epoch < (engine.state.max_epochs or 0)
        if stop or engine.state.epoch % self.interval == 0:
            self.save(engine)
        if stop:
            engine.terminate()

    def _told_to_stop(self, engine: Any) -> bool:
        if not (dist.is_available() and dist.is_initialized()):
            return self.stop_requested
        flag = torch.tensor(int(self.stop_requested), device=engine.state.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _on_signal(self, signum: int, frame: Any) -> None:
        self.stop_requested = True

    def leave(self, engine: Engine) -> None:
        """End a stopped run with the exit code of a terminated process, so that nothing takes it for complete."""
        self._restore_handler()
        if self.stop_requested:
            logger.warning("stopped by SIGTERM; %s is saved, go on with --resume true", self.path)
            raise SystemExit(128 + signal.SIGTERM)

    def finish(self, engine: Engine) -> None:
        """Save the end of the run and stop listening."""
        self._restore_handler()
        self.save(engine)

    def _restore_handler(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None


def own_process_group(worker_id: int) -> None:
    """`worker_init_fn` of a data loader: a signal to the run's process group is the main process's to handle.

    `timeout` and shells send SIGTERM to the whole group. Workers that died of it would end the run with an error before
    its checkpoint is written. They still end with the main process, and when it terminates them.
    """
    if hasattr(os, "setpgrp"):  # absent on Windows
        os.setpgrp()


class ExportEncoder:
    """Writes the encoder alone, with its own keys and a record of where it comes from, when a run is complete.

    Args:
        encoder: the module whose weights others will use.
        path: file to write; replaced in one step.
        provenance: plain values that say where the weights come from (method, data, seed, ...); versions and epochs are
            added.
    """

    def __init__(self, encoder: torch.nn.Module, path: str, provenance: Mapping[str, Any]) -> None:
        self.encoder, self.path, self.provenance = encoder, path, dict(provenance)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file; only the first process does."""
        if process_rank() == 0:
            save_encoder(self.encoder.state_dict(), training_record(self.provenance, engine), self.path)
            logger.info("wrote the encoder to %s", self.path)
