"""How well a grid-matched network orders cells and finds them again, on held-out images, beside random networks."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from torch import nn

from anatomy_ssl.metrics.grid import GridQuality
from anatomy_ssl.metrics.statistics import random_rows
from anatomy_ssl.metrics.tables import markdown_table, write_table
from anatomy_ssl.weights import load_pretrained

__all__ = ["GridEvaluation"]

logger = logging.getLogger(__name__)


class GridEvaluation:
    """Runs `metrics.GridQuality` of trained and of random networks on the same views and distortions.

    Args:
        network: a `GridConsistencyNetwork`; its own weights are not used.
        checkpoints: name of the method -> training checkpoint.
        random_networks: freshly initialised networks of the same architecture, at least one.
        loader: grid-aligned views of held-out patients.
        prepare_batch: `PrepareGridViews` with a seed.
        output_dir: for `evaluation.csv` and `.md`.
        part: "teacher", whose encoder is exported, or "student".
        centre: see `metrics.GridQuality`.
        device: where the networks run.

    Raises:
        ValueError: without random networks, for another part, or where a checkpoint does not fit.
        FileNotFoundError: if there is no such checkpoint.
    """

    def __init__(
        self,
        network: nn.Module,
        checkpoints: Mapping[str, str],
        random_networks: Sequence[nn.Module],
        loader: DataLoader,
        prepare_batch: Callable[..., Any],
        output_dir: str,
        part: str = "teacher",
        centre: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        if not random_networks:
            raise ValueError("random_networks is empty: a result means nothing without the row of random networks")
        if part not in ("teacher", "student"):
            raise ValueError(f"part must be 'teacher' or 'student', got {part!r}")
        self.networks = {name: copy.deepcopy(network) for name in checkpoints}
        for name, path in checkpoints.items():
            load_pretrained(self.networks[name], path, prefix=part, minimum_share=1.0)
        self.random_networks, self.loader, self.prepare_batch = list(random_networks), loader, prepare_batch
        self.output_dir, self.centre, self.device = Path(output_dir), centre, torch.device(device)

    def run(self) -> list[dict[str, Any]]:
        """Write the table; return its rows."""
        rows = [{"network": name, **self._evaluate(network)} for name, network in self.networks.items()]
        random = [self._evaluate(network) for network in self.random_networks]
        rows += random_rows("network", random)
        path = write_table(self.output_dir / "evaluation.csv", rows)
        logger.info("held-out patients, %s:\n%s", path, markdown_table(rows))
        return rows

    def _evaluate(self, network: nn.Module) -> dict[str, float]:
        evaluator = SupervisedEvaluator(
            device=self.device,
            val_data_loader=self.loader,
            network=network.to(self.device),
            prepare_batch=self.prepare_batch,
            key_val_metric={"token_gap": GridQuality(self.centre)},
            decollate=False,
        )
        evaluator.run()
        return dict(evaluator.state.metrics)
