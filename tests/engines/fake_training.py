"""What a bundle's runs leave behind, without training: for tests of `compare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.handlers import write_metrics_reports


def train(output_dir: str, seed: int, fail: bool = False) -> None:
    """Count how often this run was trained; break off where told to."""
    with open(Path(output_dir, "trained"), "a") as file:
        file.write(f"{seed}\n")
    if fail:
        raise ValueError("the training broke")


def evaluate(output_dir: str, seed: int, pretrained: str | None, shift: float) -> None:
    """Patients' Dice by a formula: 0.5 + 0.01 patient + 0.02 seed, and `shift` more with pretraining."""
    dice = 0.5 + 0.01 * np.arange(4) + 0.02 * seed + (0.0 if pretrained is None else shift * np.arange(1, 5))
    table = torch.from_numpy(np.stack([dice, dice], 1))
    names = [f"patient_{i}.nii.gz" for i in range(4)]
    write_metrics_reports(f"{output_dir}/evaluation", names, {"dice": dice.mean()}, {"dice": table}, None)
