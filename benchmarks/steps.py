"""A training step of each method by its parts, and how much of it is not the encoder's own forward and backward.

The bundle's own trainer runs on phantoms or synthetic scans, with two loader processes. A step is split at the
trainer's events: waiting for data, preparing the batch, forward, loss, backward, handlers on loss and gradients
(finiteness, clipping), optimiser, moving average, other handlers. It runs again without loader processes, which would
take the cores from it, each step followed by the encoder's forward and backward alone on the same views: what the step
takes beyond that, less waiting for data, is its overhead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import IterationEvents
from torch.utils.flop_counter import FlopCounterMode

from anatomy_ssl.data import load_datalist
from anatomy_ssl.data.phantom import write_phantom_cohort
from anatomy_ssl.handlers import MomentumTeacher

from .bundles import recipe
from .files import write_radiographs, write_scan
from .timing import Row, Settings, median, synchronise

WARM_UP = 3  # steps that are not counted, until the loader's processes have started
PARTS = ("wait", "prepare batch", "forward", "loss", "backward", "gradients", "optimiser", "EMA", "handlers")
ENCODERS = {"isimed": "encoder", "peac": "student.encoder", "alice": "student.backbone.network"}
VIEWS: dict[str, Callable[[Any], torch.Tensor]] = {
    "isimed": lambda inputs: inputs,
    "peac": lambda inputs: torch.cat(list(inputs)),
    "alice": lambda inputs: torch.cat(list(inputs["masked"])),
}
BATCH = {"isimed": "volumes_per_batch", "peac": "images_per_batch", "alice": "pairs_per_batch"}
NEVER = 1 << 20  # epochs between validations
TINY: dict[str, dict[str, Any]] = {
    "isimed": {"crop_size": [16, 16, 16], "crops_per_volume": 2, "volumes_per_batch": 2},
    "peac": {"grid_size": [2, 2], "encoder#window_size": 2, "encoder#embed_dim": 16, "images_per_batch": 2},
    "alice": {"crop_size": [64, 32, 32], "pairs_per_batch": 2},
}


def run(settings: Settings) -> list[Row]:
    """Rows of all methods: ISImed's and Alice's demonstrations, DenseNet121 on CTs, a small Swin on radiographs."""
    folder = settings.folder / "steps"
    folder.mkdir()
    tiny = settings.size == "tiny"
    spacings = {"spacings": ((9.0, 9.0, 9.0), (8.0, 8.0, 12.0))} if tiny else {}
    write_phantom_cohort(folder / "phantoms", 8 if tiny else 16, radiographs=False, progress=False, **spacings)
    phantoms = load_datalist(folder / "phantoms", "training")
    scans = [] if tiny else [write_scan(folder / f"scan_{i}.nii.gz", (128, 128, 120), "ct", i) for i in range(16)]
    pictures = write_radiographs(folder, 16, 96 if tiny else 512)
    demo, world = ["encoder_small.yaml", "demo.yaml"], "matcher_world.yaml"
    methods: list[tuple[str, str, list[dict[str, Any]], list[str], dict[str, Any], int]] = [
        ("ISImed, its demo", "isimed", phantoms, demo, {}, settings.pick(60, 20, 1)),
        ("ISImed, DenseNet121", "isimed", scans, [], {"volumes_per_batch": 4}, settings.pick(10, 4, 1)),
        ("PEAC, small Swin at 224", "peac", pictures, demo[:1], {}, settings.pick(20, 6, 1)),
        ("Alice, its demo", "alice", phantoms, [*demo, world], {}, settings.pick(6, 2, 1)),
    ]
    rows = []
    for label, name, items, overlays, changes, steps in methods:
        if tiny:
            changes = {**changes, **TINY[name]}
        if not (tiny and label.endswith("DenseNet121")):
            rows += method(settings, label, name, items, overlays, changes, WARM_UP + steps)
    return rows


def method(
    settings: Settings,
    label: str,
    name: str,
    items: Sequence[dict[str, Any]],
    overlays: Sequence[str],
    changes: dict[str, Any],
    steps: int,
) -> list[Row]:
    """Parts of a step of the bundle `name`, its waiting and its overhead."""
    options = {"crop_store": str(settings.folder / "steps" / "store"), "device": settings.device, **changes}
    options |= {"epochs": 1, "val_interval": NEVER}
    clocks: list[Clock] = []
    for processes in (0 if settings.size == "tiny" else 2, 0):
        folder = settings.folder / "steps" / f"{label.replace(', ', '_')}_{len(clocks)}"
        parser = recipe(name, folder, items, overlays, **options, num_workers=processes)
        parser["repeats"] = -(-steps * parser[BATCH[name]] // len(items))
        clocks.append(Clock(settings.device))
        parser["train"]["handlers"] = [clocks[-1].first, *parser["train"]["handlers"], clocks[-1].last]
        trainer = parser.get_parsed_content("train#trainer")
        clocks[-1].listen(trainer, parser)
        if len(clocks) == 2:
            encoder = parser.get_parsed_content("network_def").get_submodule(ENCODERS[name])
            clocks[-1].encode = partial(encode, encoder, VIEWS[name])
        trainer.run()
        if processes:
            parser.get_parsed_content("train#dataloader")._iterator._shutdown_workers()
    return rows_of(clocks[0], clocks[1], label, 15 if name == "isimed" else None)


def encode(encoder: torch.nn.Module, views: Callable[[Any], torch.Tensor], inputs: Any) -> None:
    """The encoder's forward and backward by themselves, on the network's inputs."""
    found = encoder(views(inputs))
    torch.autograd.backward(found, torch.ones_like(found))
    encoder.zero_grad()


class Clock:
    """Notes when the parts of a step end.

    Attributes:
        first: the trainer's first handler.
        last: its last one.
        parts: seconds of each part, step by step.
        own: seconds of the encoder alone, after each step.
        flops: of the encoder's forward and backward.
        encode: runs them on the inputs of the network; None to leave them out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first, self.last = _Attached(self._attach_first), _Attached(self._attach_last)
        self.parts: list[dict[str, float]] = []
        self.own: list[float] = []
        self.flops = 0
        self.encode: Callable[[Any], None] | None = None
        self._spent: dict[str, float] = {}
        self._then = 0.0

    def mark(self, part: str) -> None:
        """A part has ended."""
        synchronise(self.device)
        now = time.perf_counter()
        self._spent[part] = self._spent.get(part, 0.0) + now - self._then
        self._then = now

    def listen(self, trainer: Any, parser: ConfigParser) -> None:
        """To what no event tells of: the end of preparing a batch, and the moving average."""
        prepare = trainer.prepare_batch

        def timed(*args: Any, **kwargs: Any) -> Any:
            batch = prepare(*args, **kwargs)
            self.mark("prepare batch")
            return batch

        trainer.prepare_batch = timed
        for teacher in [h for h in parser.get_parsed_content("train#handlers") if isinstance(h, MomentumTeacher)]:
            trainer.remove_event_handler(teacher, Events.ITERATION_COMPLETED)

            def move(engine: Engine, teacher: MomentumTeacher = teacher) -> None:
                self.mark("handlers")
                teacher(engine)
                self.mark("EMA")

            trainer.add_event_handler(Events.ITERATION_COMPLETED, move)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _attach_first(self, engine: Engine) -> None:
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        for event, part in (
            (Events.GET_BATCH_COMPLETED, "wait"),
            (IterationEvents.FORWARD_COMPLETED, "forward"),
            (IterationEvents.LOSS_COMPLETED, "loss"),
            (IterationEvents.BACKWARD_COMPLETED, "backward"),
            (IterationEvents.MODEL_COMPLETED, "optimiser"),
        ):
            engine.add_event_handler(event, lambda _, part=part: self.mark(part))

    def _attach_last(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, lambda _: self.mark("handlers"))
        for event in (IterationEvents.LOSS_COMPLETED, IterationEvents.BACKWARD_COMPLETED):
            engine.add_event_handler(event, lambda _: self.mark("gradients"))

    def _begin(self, engine: Engine) -> None:
        synchronise(self.device)
        self._spent, self._then = {}, time.perf_counter()

    def _end(self, engine: Engine) -> None:
        self.mark("handlers")
        counted = engine.state.iteration > WARM_UP
        if counted:
            self.parts.append(self._spent)
        if self.encode is None:
            return
        inputs = engine.state.output["image"]
        if not self.flops:
            with FlopCounterMode(display=False) as counter:
                self.encode(inputs)
            self.flops = counter.get_total_flops()
        begun = time.perf_counter()
        self.encode(inputs)
        synchronise(self.device)
        if counted:
            self.own.append(time.perf_counter() - begun)


class _Attached:
    """A handler in the list of a config, which is attached by a function."""

    def __init__(self, attach: Callable[[Engine], None]) -> None:
        self.attach = attach


def rows_of(clock: Clock, alone: Clock, label: str, asked: float | None) -> list[Row]:
    """The parts, their sum, the share of waiting, and what is beyond the encoder, where no loader disturbs the step."""
    whole = [sum(step.values()) for step in clock.parts]
    rows = [Row(f"step of {label}: all of it", whole)]
    rows += [Row(f"step of {label}: {part}", [step.get(part, 0.0) for step in clock.parts]) for part in PARTS]
    share = 100 * sum(step["wait"] for step in clock.parts) / sum(whole)
    rows.append(Row(f"step of {label}: share of waiting, of all steps", [share], unit="%", at_most=5))
    steps = [sum(step.values()) - step["wait"] for step in alone.parts]
    beyond = [100 * (step / own - 1) for step, own in zip(steps, alone.own)]
    note = f"encoder: {alone.flops / 1e9:.1f} GFLOP, {alone.flops / median(alone.own) / 1e9:.0f} GFLOP/s"
    what = f"step of {label}: beyond the encoder's own forward and backward"
    return [*rows, Row(what, beyond, unit="%", at_most=asked, note=note)]
