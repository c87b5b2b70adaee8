"""Runs of the ISImed bundle that take seconds: phantoms of coarse voxels, a tiny encoder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from anatomy_ssl.handlers import process_rank

CONFIGS = Path(__file__).parents[2] / "bundles" / "isimed" / "configs"

TINY = {
    "crop_size": [8, 8, 8],
    "crop_spacing": [12.0, 12.0, 12.0],
    "crops_per_volume": 4,
    "volumes_per_batch": 2,
    "num_workers": 0,
    "embedding_size": 8,
    "encoder": {
        "_target_": "monai.networks.nets.Regressor",
        "in_shape": [1, 8, 8, 8],
        "out_shape": [8],
        "channels": [4, 8],
        "strides": [2, 2],
        "num_res_units": 0,
        "dropout": 0.2,
    },
    "tensorboard": False,
    "mlflow": False,
    "pictures": False,
    "epochs": 3,
    "device": "$torch.device('cpu')",
}


def config_files(folder: Path, names: tuple[str, ...] = (), base: str = "pretrain.yaml", **changes: Any) -> list[str]:
    """The base, a file that makes everything tiny, the named overlays, and a file with the changes."""
    tiny, last = folder / "tiny.json", folder / "changes.json"
    tiny.write_text(json.dumps(TINY))
    last.write_text(json.dumps(changes))
    return [str(CONFIGS / base), str(tiny), *[str(CONFIGS / name) for name in names], str(last)]


def run(run_id: str, folder: Path, cohort: Path, names: tuple[str, ...] = (), **changes: Any) -> Path:
    """Run the bundle in this process, as `monai.bundle.run` does; returns its output folder."""
    folder.mkdir(exist_ok=True)
    output = folder / "out"
    files = config_files(folder, names, **changes)
    places = {"dataset_dir": str(cohort), "output_dir": str(output)}
    workflow = monai.bundle.create_workflow(config_file=files, run_id=run_id, **places)
    try:
        workflow.run()
    finally:
        loader = workflow.parser.ref_resolver.resolved_content.get("train::dataloader")
        # left to the garbage collection, each would be waited for: its queue is closed before it is told to end
        if getattr(loader, "_iterator", None) is not None:
            loader._iterator._shutdown_workers()
    return output


def parsed(folder: Path, cohort: Path, names: tuple[str, ...] = (), **changes: Any) -> ConfigParser:
    """The same configuration, not run: its parts by their names."""
    parser = ConfigParser()
    parser.read_config(config_files(folder, names, **changes))
    parser.update({"dataset_dir": str(cohort), "output_dir": str(folder / "out")})
    return parser


def start(run_id: str, folder: Path, cohort: Path, launcher: tuple[str, ...] = (), **kwargs: Any) -> subprocess.Popen:
    """Run the bundle in a process of its own, by `torchrun`'s module with arguments `launcher` where given."""
    files = config_files(folder, **kwargs)
    prefix = [sys.executable, "-m", *(("torch.distributed.run", *launcher, "-m") if launcher else ())]
    options = ["--config_file", str(files), "--dataset_dir", str(cohort), "--output_dir", str(folder / "out")]
    command = [*prefix, "monai.bundle", "run", run_id, *options]
    root = Path(__file__).parents[2]
    # sums round differently with another number of threads
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The model of a run's checkpoint."""
    return torch.load(output / "checkpoint.pt", weights_only=True)["model"]


def assert_same_weights(a: Path, b: Path) -> None:
    """Two runs ended with bit-equal networks."""
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


class TerminateAt:
    """A handler that sends its own process SIGTERM when an iteration starts, as a scheduler may at any time.

    Args:
        iteration: counted from 1.
        rank: of the only process that gets the signal; None for all.
    """

    def __init__(self, iteration: int, rank: int | None = None) -> None:
        self.iteration, self.rank = iteration, rank

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.rank not in (None, process_rank()):
            return
        engine.add_event_handler(
            Events.ITERATION_STARTED(once=self.iteration), lambda _: os.kill(os.getpid(), signal.SIGTERM)
        )


class DieWhileWriting:
    """A handler after which the next checkpoint is cut off in the middle, as by a power failure."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED(once=self.epoch), self._arm)

    def _arm(self, engine: Engine) -> None:
        def half(obj: Any, file: Any) -> None:
            file.write(b"half a checkpoint")
            file.flush()
            os._exit(137)

        torch.save = half


class RecordProcess:
    """A handler that writes what each process has at the end: weights, and the metrics of the last validation."""

    def __init__(self, network: torch.nn.Module, evaluator: Engine, folder: str) -> None:
        self.network, self.evaluator, self.folder = network, evaluator, Path(folder)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        record = {"weights": self.network.state_dict(), "metrics": dict(self.evaluator.state.metrics)}
        torch.save(record, self.folder / f"process_{process_rank()}.pt")


class BrightCentre(torch.nn.Module):
    """Stands in for a trained classifier: class k is where the mean of a crop's middle 2^3 samples is above a level.

    Args:
        levels: one for each class, on the scale of the prepared image.
    """

    def __init__(self, levels: list[float]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, K)` of crops `(N, 1, *roi)`."""
        middle = x[(..., *[slice(n // 2 - 1, n // 2 + 1) for n in x.shape[2:]])]
        return 4 * (middle.flatten(1).mean(1, keepdim=True) - self.levels)


def not_a_number(images: torch.Tensor) -> list[torch.Tensor]:
    """A view as a broken distortion gives it."""
    return [images * float("nan")]
