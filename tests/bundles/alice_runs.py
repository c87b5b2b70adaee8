"""Runs of Alice's pre-training that take seconds: coarse phantoms in one world, a backbone of few weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles" / "alice" / "configs"

TINY: dict[str, Any] = {
    "crop_size": [16, 16, 16],
    "crop_spacing": [12.0, 12.0, 12.0],
    "block_size": 4,
    "pairs_per_batch": 2,
    "val_pairs": 2,
    "num_workers": 0,
    "candidates": 8,
    "epochs": 2,
    "learning_rate": 0.5,
    "warmup_epochs": 1,
    "momentum": 0.9,
    "prototypes": 8,
    "head": {"hidden": 8, "bottleneck": 4},
    "casa": {"width": 8, "heads": 2, "head_features": 4, "feedforward": 8, "dropout": 0.1},
    "backbone": {"_target_": "tests.bundles.alice_runs.TinyBackbone", "channels": "@channels"},
    "exported": "$@network_def.teacher.backbone",
    "matcher": {"_target_": "tests.bundles.alice_runs.SameWorld"},
    "tensorboard": False,
    "mlflow": False,
    "pictures": False,
    "device": "$torch.device('cpu')",
}
# SwinUNETR itself, as small as it gets
SWIN: dict[str, Any] = {
    "crop_size": [64, 32, 32],
    "crop_spacing": [6.0, 12.0, 12.0],
    "block_size": 16,
    "feature_size": 12,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 4,
}


class TinyBackbone(nn.Module):
    """Three convolutions with the stages that `AliceNetwork` asks for."""

    num_features, decoder_features = 8, 4

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.down = nn.Conv3d(channels, 4, 3, stride=4, padding=1)
        self.deep = nn.Conv3d(4, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose3d(8, 4, 2, stride=2)
        self.out = nn.ConvTranspose3d(4, channels, 4, stride=4)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps of strides 4 and 8."""
        fine = F.gelu(self.down(x))
        return [fine, self.deep(fine)]

    def first_decoder(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """One map of stride 4."""
        return F.gelu(self.up(maps[-1]) + maps[0])

    def restore(self, maps: Sequence[torch.Tensor], first: torch.Tensor) -> torch.Tensor:
        """The image."""
        return self.out(first)


class SameWorld:
    """The same coordinates, with one score for all; counts nothing on fields of view.

    Args:
        score: of every match.
    """

    def __init__(self, score: float = 1.0) -> None:
        self.score = score

    def __call__(self, source: Any, target: Any, points: torch.Tensor) -> Any:
        """The points as they are."""
        from anatomy_ssl.matching.matcher import Matches

        return Matches(points, torch.full((len(points),), self.score))


def files(folder: Path, names: Sequence[str] = (), without: Sequence[str] = (), **changes: Any) -> list[str]:
    """The recipe, a file that makes it tiny but for what is `without`, overlays, and a file with the changes."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps({key: value for key, value in TINY.items() if key not in without}))
    (folder / "changes.json").write_text(json.dumps(changes))
    overlays = [str(CONFIGS / name) for name in names]
    return [str(CONFIGS / "pretrain.yaml"), str(folder / "tiny.json"), *overlays, str(folder / "changes.json")]


def train(folder: Path, data: Path, names: Sequence[str] = (), without: Sequence[str] = (), **changes: Any) -> Path:
    """Run it in this process; returns the output folder."""
    workflow(folder, data, names, without, **changes).run()
    return folder / "out"


def workflow(folder: Path, data: Path, names: Sequence[str] = (), without: Sequence[str] = (), **changes: Any) -> Any:
    """The same, initialised and not run."""
    places = {"dataset_dir": str(data), "output_dir": str(folder / "out")}
    config = files(folder, names, without, **changes)
    return monai.bundle.create_workflow(config_file=config, run_id="training", **places)


def two_processes(folder: Path, data: Path, **changes: Any) -> subprocess.CompletedProcess:
    """Run it in two gloo processes, which leave process_0.pt and process_1.pt in the folder."""
    record = {"_target_": "tests.bundles.runs.RecordProcess", "folder": str(folder)}
    record |= {"network": "@network_def", "evaluator": "@validate#evaluator"}
    config = files(folder, ("multi_gpu_pretrain.yaml",), ("device",), **{"+train#handlers": [record], **changes})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", "--config_file", str(config)]
    command += ["--dataset_dir", str(data), "--output_dir", str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def checkpoint(output: Path) -> dict[str, Any]:
    """A run's checkpoint."""
    return torch.load(output / "checkpoint.pt", weights_only=True)
