"""A training step of each method by its parts, and how much of it is not the encoder's own forward and backward.

The bundle's own trainer runs on synthetic scans with two loader processes. In its first epoch the step is split at the
trainer's events: waiting for data, preparing the batch, forward, loss, backward, handlers on gradients (finiteness,
clipping), optimiser, moving average, other handlers. In the second, each step is followed by the encoder's forward and
backward alone, on what the step gave it: the step (without waiting, which those would hide) beyond that is the overhead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import IterationEvents

from anatomy_ssl.handlers import MomentumTeacher

from .bundles import recipe
from .files import write_radiographs, write_scan
from .timing import Row, Settings, median, synchronise

WARM_UP = 3  # steps that are not counted, until the loader's processes have started
PARTS = ("wait", "prepare batch", "forward", "loss", "backward", "gradients", "optimiser", "EMA", "handlers")
SMALL_SWIN = {"grid_size": [14, 14], "cell_size": 16, "images_per_batch": 8}
NEVER = 1 << 20  # epochs between validations
TINY: dict[str, dict[str, Any]] = {
    "isimed": {"crop_size": [16, 16, 16], "crops_per_volume": 2, "volumes_per_batch": 2},
    "peac": {"grid_size": [2, 2], "encoder#window_size": 2, "encoder#embed_dim": 16, "images_per_batch": 2},
    "alice": {"crop_size": [32, 32, 32], "crop_spacing": [3.0, 3.0, 3.0], "pairs_per_batch": 2},
}


def run(settings: Settings) -> list[Row]:
    """Rows of all methods."""
    folder = settings.folder / "steps"
    folder.mkdir()
    shape = (72, 72, 68) if settings.size == "tiny" else (128, 128, 120)
    scans = [write_scan(folder / f"scan_{i}.nii.gz", shape, "ct", seed=i) for i in range(16)]
    pictures = write_radiographs(folder, 16, 96 if settings.size == "tiny" else 512)
    small, world = "encoder_small.yaml", "matcher_world.yaml"
    rows = []
    for label, name, items, overlays, changes in (
        ("ISImed, encoder_small", "isimed", scans, [small], {"crop_spacing": [3.0, 3.0, 3.0]}),
        ("ISImed, DenseNet121", "isimed", scans, [], {"volumes_per_batch": 4}),
        ("PEAC, small Swin at 224", "peac", pictures, [small], SMALL_SWIN),
        ("Alice, encoder_small", "alice", scans, [small, world], {"crop_spacing": [1.5, 1.5, 1.5]}),
    ):
        if settings.size == "tiny":
            changes = {**changes, **TINY[name], "num_workers": 1}
            if label.endswith("DenseNet121"):
                continue
        rows += method(settings, label, name, items, overlays, changes)
    return rows


def method(
    settings: Settings,
    label: str,
    name: str,
    items: Sequence[dict[str, Any]],
    overlays: Sequence[str],
    changes: dict[str, Any],
) -> list[Row]:
    """Parts of a step, its waiting and its overhead, of the bundle `name`."""
    steps = WARM_UP + settings.pick(15, 6, 1)
    folder = Path(settings.folder / "steps" / label.replace(" ", "_"))
    store = {"crop_store": str(settings.folder / "steps" / "store"), "device": settings.device, "num_workers": 2}
    parser = recipe(name, folder, items, overlays, **{**store, "epochs": 2, "val_interval": NEVER, **changes})
    parser["initialize"] = []
    batch = parser.get_parsed_content("train#dataloader").batch_size
    parser["repeats"] = -(-steps * batch // len(items))
    parser.parse(reset=True)
    clock = Clock(settings.device)
    parser["train"]["handlers"] = [clock.first, *parser["train"]["handlers"], clock.last]
    clock.watch(parser, name)
    return clock.rows(label)


class Clock:
    """Handlers that note when the parts of a step begin and end, and the encoder's own time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first, self.last = Attach(self.attach_first), Attach(self.attach_last)
        self.steps: list[dict[str, float]] = []
        self.whole: list[float] = []
        self.own: list[float] = []
        self.inputs: list[tuple[torch.Tensor, ...]] = []
        self.flops = 0

    def watch(self, parser: ConfigParser, name: str) -> None:
        """Run the bundle's training."""
        trainer = parser.get_parsed_content("train#trainer")
        network = parser.get_parsed_content("network_def")
        self.encoder, self.run_encoder = encoder_of(network, name)
        prepare = trainer.prepare_batch

        def timed(*args: Any, **kwargs: Any) -> Any:
            found = prepare(*args, **kwargs)
            self.mark("prepare batch")
            return found

        trainer.prepare_batch = timed
        for teacher in [h for h in parser.get_parsed_content("train#handlers") if isinstance(h, MomentumTeacher)]:
            trainer.remove_event_handler(teacher, Events.ITERATION_COMPLETED)
            self.teacher = teacher
        self.keep_inputs(trainer)
        trainer.run()
