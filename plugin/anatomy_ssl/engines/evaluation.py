"""How well embeddings tell where in the body a crop lies, on held-out patients, beside random encoders."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.engines.embedding import embed_crops, load_encoders
from anatomy_ssl.figures.draw import draw_figures
from anatomy_ssl.metrics.position import position_table
from anatomy_ssl.metrics.statistics import random_rows
from anatomy_ssl.metrics.tables import markdown_table, write_table

logger = logging.getLogger(__name__)


class PositionEvaluation:
    """Embeds crops of training and of held-out patients with trained and with random encoders, and compares them.

    Position is regressed by ridge on the training patients; everything reported is of the held-out ones. See
    `metrics.position` for rho, R2 and the error, `metrics.collapse` for RankMe.

    Args:
        encoder: the architecture; its own weights are not used.
        checkpoints: name of the method -> file with its weights (a training checkpoint or an exported encoder).
        random_encoders: freshly initialised encoders of the same architecture, at least one; each with its own weights.
        train_loader: crops of the training patients.
        test_loader: crops of held-out patients.
        output_dir: where tables, embeddings and figures go.
        recipe: crop size, spacing and channels of the loaders' crops, compared with the checkpoints' records.
        device: where the encoders run.
        figures: which figures to draw of each method and of the first random encoder; an empty list draws none.
    """

    def __init__(
        self,
        encoder: torch.nn.Module,
        checkpoints: Mapping[str, str],
        random_encoders: Sequence[torch.nn.Module],
        train_loader: Iterable[dict[str, Any]],
        test_loader: Iterable[dict[str, Any]],
        output_dir: str,
        recipe: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        figures: Sequence[str] = ("distances", "umap", "pca"),
    ) -> None:
        if not random_encoders:
            raise ValueError("random_encoders is empty: a result means nothing without the row of random encoders")
        self.encoders = load_encoders(encoder, checkpoints, recipe)
        self.random_encoders = list(random_encoders)
        self.loaders = {"training": train_loader, "test": test_loader}
        self.output_dir, self.device, self.figures = Path(output_dir), device, list(figures)

    def run(self) -> list[dict[str, Any]]:
        """Write `evaluation.csv` and `.md`, embeddings and figures; return the rows of the table."""
        rows = [{"encoder": name, **self._evaluate(encoder, name)} for name, encoder in self.encoders.items()]
        random = [self._evaluate(net, f"random_{i}") for i, net in enumerate(self.random_encoders)]
        rows += random_rows("encoder", random)
        path = write_table(self.output_dir / "evaluation.csv", rows)
        logger.info("held-out patients, %s:\n%s", path, markdown_table(rows))
        if self.figures:
            drawn = [f"{name}={self.embedding_path('test', name)}" for name in (*self.encoders, "random_0")]
            draw_figures(drawn, self.output_dir / "figures", kind=self.figures)
        return rows

    def embedding_path(self, split: str, name: str) -> Path:
        """Where the embeddings of a split by an encoder are saved."""
        return self.output_dir / f"embeddings_{split}_{name}.npz"

    def _evaluate(self, encoder: torch.nn.Module, name: str) -> dict[str, float]:
        embedded: dict[str, Embeddings] = {}
        for split, loader in self.loaders.items():
            embedded[split] = embed_crops(encoder, loader, self.device)
            embedded[split].save(self.embedding_path(split, name))
        return position_table(embedded["training"], embedded["test"])
