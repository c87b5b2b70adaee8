"""The bundles' own pre-training configs on files of our making, parsed, not run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

BUNDLES = Path(__file__).parents[1] / "bundles"
QUIET = {"tensorboard": False, "mlflow": False, "pictures": False}


def recipe(
    name: str, folder: Path, items: Sequence[dict[str, Any]], overlays: Sequence[str] = (), **changes: Any
) -> ConfigParser:
    """The config of a bundle's pre-training.

    Args:
        name: of the bundle.
        folder: for its output.
        items: of the training; the first two are those of the validation as well.
        overlays: further configs of the bundle.
        changes: of keys.
    """
    parser = ConfigParser()
    parser.read_config([str(BUNDLES / name / "configs" / file) for file in ("pretrain.yaml", *overlays)])
    places = {"bundle_root": str(BUNDLES / name), "dataset_dir": str(folder), "output_dir": str(folder / "output")}
    device = {"device": torch.device("cpu"), "num_workers": 0}
    parser.update({**places, "train_items": list(items), "val_items": list(items[:2]), **QUIET, **device, **changes})
    return parser
