"""Lesion probes: what a frozen or a fine-tuned encoder tells of a crop, in folds that keep each patient together."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.networks.utils import eval_mode
from monai.utils import set_determinism
from torch import nn

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.engines.embedding import embed_crops, load_encoders
from anatomy_ssl.figures.probes import auc_per_fold
from anatomy_ssl.metrics.probe import cross_validate, linear_probe, probe_rows, read_probe
from anatomy_ssl.metrics.statistics import comparison_table
from anatomy_ssl.metrics.tables import markdown_table, write_table

logger = logging.getLogger(__name__)

TASKS = {"classification": "auc", "regression": "spearman"}


class LesionProbe:
    """Cross-validates lesion classification and lesion-volume regression of crops for several encoders.

    The protocol of Jabareen et al. 2024 (arXiv 2410.16947): crops around lesion and other voxels, a linear head, Adam,
    a fixed number of epochs, AUC of each fold, paired t-test between methods over the folds. Folds are of patients,
    each has a fresh head (and, fine-tuned, a fresh copy of the encoder), and no epoch is chosen on the fold it is
    reported on.

    Args:
        encoder: the architecture; its own weights are not used.
        checkpoints: method -> file with its weights.
        random_encoders: freshly initialised encoders, at least one; rows beside the trained ones.
        loader: crops with `lesion_volume` in mm^3, of patients that no method was trained on.
        output_dir: for `probe.csv` (method, fold, metric, value), the tests and the figures.
        recipe: crop size, spacing and channels of the loader's crops, compared with the checkpoints' records.
        device: where encoders run.
        mode: "frozen" (linear head on embeddings) or "finetune" (encoder and head).
        tasks: of "classification" (does the crop hold lesion voxels) and "regression" (of log(1 + volume)).
        folds: number of patient-grouped folds.
        epochs: passes over the training part of a fold.
        learning_rate: Adam's; of encoder and head where both are trained.
        batch_size: crops a step.
        seed: of folds, heads and orders.
    """

    def __init__(
        self,
        encoder: nn.Module,
        checkpoints: Mapping[str, str],
        random_encoders: Sequence[nn.Module],
        loader: Iterable[dict[str, Any]],
        output_dir: str,
        recipe: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        mode: str = "frozen",
        tasks: Sequence[str] = tuple(TASKS),
        folds: int = 10,
        epochs: int = 25,
        learning_rate: float = 1e-3,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        if mode not in ("frozen", "finetune") or not set(tasks) <= set(TASKS):
            raise ValueError(
                f"mode must be 'frozen' or 'finetune', tasks of {list(TASKS)}; got {mode!r}, {list(tasks)}"
            )
        if not random_encoders:
            raise ValueError("random_encoders is empty: a result means nothing without the row of random encoders")
        self.encoders = load_encoders(encoder, checkpoints, recipe)
        self.encoders.update({f"random_{i}": net for i, net in enumerate(random_encoders)})
        self.loader, self.output_dir, self.device, self.mode = loader, Path(output_dir), device, mode
        self.tasks, self.folds, self.epochs, self.seed = list(tasks), folds, epochs, seed
        self.learning_rate, self.batch_size = learning_rate, batch_size

    def run(self) -> dict[str, list[dict[str, Any]]]:
        """Write tables and figures; return for each metric the rows of the comparison of methods."""
        rows: list[dict[str, Any]] = []
        images = torch.cat([torch.as_tensor(b["image"]) for b in self.loader]) if self.mode == "finetune" else None
        for name, encoder in self.encoders.items():
            emb = embed_crops(encoder, self.loader, self.device, extra_keys=("lesion_volume",))
            emb.save(self.output_dir / f"embeddings_probe_{name}.npz")
            volume = emb.extra["lesion_volume"]
            for task in self.tasks:
                target = (volume > 0).astype(float) if task == "classification" else volume
                scores = (
                    self._frozen(emb, target, task)
                    if images is None
                    else self._finetuned(encoder, images, emb, target, task)
                )
                rows += probe_rows(name, scores)
        path = write_table(self.output_dir / "probe.csv", rows)
        return {TASKS[task]: self._compare(path, TASKS[task]) for task in self.tasks}

    def _compare(self, path: Path, metric: str) -> list[dict[str, Any]]:
        values = read_probe([path], metric)
        table = comparison_table(values)
        write_table(self.output_dir / f"probe_{metric}.csv", table)
        auc_per_fold(values, self.output_dir / f"probe_{metric}.png", metric)
        logger.info("%s per fold, %s encoders:\n%s", metric, self.mode, markdown_table(table))
        return table

    def _frozen(self, emb: Embeddings, target: np.ndarray, task: Any) -> dict[str, list[float]]:
        return linear_probe(emb, target, self.folds, task, self.seed, self.epochs, self.learning_rate, self.batch_size)

    def _finetuned(
        self, encoder: nn.Module, images: torch.Tensor, emb: Embeddings, target: np.ndarray, task: Any
    ) -> dict[str, list[float]]:
        loss = nn.MSELoss() if task == "regression" else nn.BCEWithLogitsLoss()

        def fit_predict(train: np.ndarray, goal: torch.Tensor, test: np.ndarray, fold: int) -> np.ndarray:
            set_determinism(self.seed + fold)
            network = nn.Sequential(copy.deepcopy(encoder), nn.Linear(emb.embedding.shape[1], 1)).to(self.device)
            self._finetune(network, images[torch.from_numpy(train)], goal[:, None], loss)
            return predict(network, images[torch.from_numpy(test)], self.batch_size, self.device)

        return cross_validate(emb.subject, target, fit_predict, self.folds, task, self.seed)

    def _finetune(self, network: nn.Module, images: torch.Tensor, goal: torch.Tensor, loss: nn.Module) -> None:
        items = [{"image": image, "label": label} for image, label in zip(images, goal)]
        # a single crop left over cannot be normalised by batch statistics
        alone = len(items) % self.batch_size == 1
        SupervisedTrainer(
            device=torch.device(self.device),
            max_epochs=self.epochs,
            train_data_loader=DataLoader(Dataset(items), batch_size=self.batch_size, shuffle=True, drop_last=alone),
            network=network,
            optimizer=torch.optim.Adam(network.parameters(), lr=self.learning_rate),
            loss_function=loss,
            decollate=False,
        ).run()


def predict(network: nn.Module, images: torch.Tensor, batch_size: int, device: str | torch.device) -> np.ndarray:
    """Outputs `(N,)` of a network with one output, in eval mode."""
    with eval_mode(network):
        return torch.cat([network(part.to(device)).cpu() for part in images.split(batch_size)]).squeeze(1).numpy()
