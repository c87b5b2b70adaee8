"""The quality of an embedding while it is being trained, as a metric of a MONAI or ignite engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.utils import convert_to_tensor, evenly_divisible_all_gather

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.metrics.collapse import rankme, spread
from anatomy_ssl.metrics.position import cross_fitted_position_scores, rho_across, rho_within


def embedding_and_position(output: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `EmbeddingQuality` reads of an engine's output: embedding, position and subject of each crop.

    Args:
        output: `pred` with `embedding` `(N, F)`; `label` with `position` `(N, D)` in mm, relative to the patient's
            reference point where there is one, and `subject` `(N,)` integers, as `engines.PrepareViews` makes it.
    """
    return output["pred"]["embedding"], output["label"]["position"], output["label"]["subject"]


class EmbeddingQuality(Metric):
    """Collects embeddings over a validation epoch and writes several values into `engine.state.metrics`.

    ============================  ===========================================================================
    rho_within, rho_across        Spearman's rho between latent and physical distances (`metrics.position`)
    position_error_mm             median error of a position regression; each half of the patients predicts the other
    position_r2                   its R2
    rankme, spread                effective rank and mean standard deviation (`metrics.collapse`)
    ============================  ===========================================================================

    `rho_across`, `position_error_mm` and `position_r2` are NaN with fewer than two subjects. Each value gets its
    own name whatever name the metric is attached under, so as key metric it must be attached as one of them:
    `key_val_metric: {rho_within: {_target_: EmbeddingQuality}}`.

    All processes' crops are gathered, also where their numbers differ, and sorted: the values do not depend on the
    number of processes. Crops that a padding sampler repeats count twice; validate with `even_divisible: false`.

    Args:
        output_transform: engine output to `(embedding (N, F), position (N, D) mm, subject (N,) integer)`.
        max_pairs: pairs of crops per subject, and across subjects, that enter rho; more are subsampled.
        seed: of that draw.
    """

    def __init__(
        self,
        output_transform: Callable[[Any], Any] = embedding_and_position,
        max_pairs: int = 50_000,
        seed: int = 0,
    ) -> None:
        self.max_pairs = max_pairs
        self.seed = seed
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forget all crops."""
        self._rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def update(self, output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        """Add a batch of crops: embedding `(N, F)`, position `(N, D)` in mm, subject `(N,)`.

        Raises:
            ValueError: the shapes do not fit.
        """
        embedding, position, subject = (convert_to_tensor(part).detach().cpu() for part in output)
        if embedding.ndim != 2 or position.ndim != 2 or not len(embedding) == len(position) == subject.numel():
            shapes = tuple(embedding.shape), tuple(position.shape), tuple(subject.shape)
            raise ValueError(f"EmbeddingQuality needs embedding (N, F), position (N, D), subject (N,), got {shapes}.")
        self._rows.append((embedding.float(), position.float(), subject.reshape(-1).long()))

    def compute(self) -> dict[str, float]:
        """The values over all crops of all processes.

        Raises:
            NotComputableError: no process has seen a crop.
        """
        emb = self._gather()
        position = cross_fitted_position_scores(emb)
        return {
            "rho_within": rho_within(emb, self.max_pairs, self.seed),
            "rho_across": rho_across(emb, self.max_pairs, self.seed),
            "position_error_mm": position["median_error_mm"],
            "position_r2": position["r2"],
            "rankme": rankme(emb.embedding),
            "spread": spread(emb.embedding),
        }

    def completed(self, engine: Engine, name: str) -> None:
        """Write each value under its own name; ignite would add the whole mapping, which no logger can draw."""
        engine.state.metrics.update(self.compute())

    def _gather(self) -> Embeddings:
        """The crops of all processes in an order that does not depend on who held them."""
        width = torch.tensor([part.shape[-1] for part in self._rows[0][:2]] if self._rows else [0, 0])
        if idist.get_world_size() > 1:
            # A process without a crop does not know the sizes, and without them could not take part in the gathering.
            width = torch.as_tensor(idist.all_gather(width)).reshape(-1, 2).amax(0)
        if not width.any():
            raise NotComputableError("EmbeddingQuality has seen no crops: the validation set is empty.")
        empty = (torch.zeros(0, int(width[0])), torch.zeros(0, int(width[1])), torch.zeros(0, dtype=torch.long))
        columns = [torch.cat(column) for column in zip(empty, *self._rows)]
        embedding, position, subject = (evenly_divisible_all_gather(column, concat=True).numpy() for column in columns)
        order = np.lexsort((embedding[:, 0], *position.T, subject))
        return Embeddings(embedding[order], position[order], subject[order])
