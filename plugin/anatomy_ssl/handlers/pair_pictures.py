"""Pictures of matched views and of what a student restores of them, while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import ensure_tuple_rep

from anatomy_ssl.engines.pair_batch import PreparePairs
from anatomy_ssl.figures.pairs import view_rows_image

__all__ = ["PairPictures"]


class PairPictures:
    """Draws some validation pairs as PNG and for TensorBoard: do both views show the same, and what is restored?

    `pairs_epoch_NNNN.png` has the two views of each pair beside each other, with both patients and the score of the
    match; `restored_epoch_NNNN.png` the first views as the student saw them, with what it restored in the masked
    blocks, and whole, in slices through the middle of a block: next to a block that the student saw, much is restored
    by going on with it. The latter is left out for a network that restores nothing.

    Args:
        network: a `StudentTeacher`; its student is drawn, in evaluation mode.
        batches: collated validation pairs; the first batch is drawn. Their masks should be the same each time.
        prepare_batch: from such a batch to input and targets, with a seed.
        output_dir: where the pictures go.
        summary_writer: TensorBoard's writer, or None.
        interval: epochs between pictures.
        pairs: rows of a picture, at most.
        device: the network's.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        batches: Iterable[Mapping[str, Any]],
        prepare_batch: PreparePairs,
        output_dir: str,
        summary_writer: Any = None,
        interval: int = 10,
        pairs: int = 4,
        device: str | torch.device = "cpu",
    ) -> None:
        self.student: Any = network.student
        self.batches, self.prepare_batch, self.output_dir = batches, prepare_batch, Path(output_dir)
        self.writer, self.interval, self.pairs, self.device = summary_writer, interval, pairs, torch.device(device)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer: at the end of the first epoch and of every `interval`-th."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch == 1 or epoch % self.interval == 0

    def __call__(self, engine: Engine) -> None:
        """Draw the first batch with the network as it is."""
        with torch.random.fork_rng(devices=[]):  # a loader's iterator draws a number, of which training must not know
            batch = next(iter(self.batches))
        x, targets = self.prepare_batch(batch, device=self.device)
        x = {name: [view[: self.pairs] for view in views] for name, views in x.items()}
        first, second = (_drawn(view) for view in x["whole"])
        title = f"epoch {engine.state.epoch}"
        names = [
            f"{batch['subject_1'][i]}\n{batch['subject_2'][i]}\nscore {float(batch['score'][i]):.2f}"
            + ("\n(fall-back)" if batch["fell_back"][i] else "")
            for i in range(len(first))
        ]
        self._write("pairs", view_rows_image({"view 1": first, "view 2": second}, names, title), engine)
        outputs = self._ask(x)
        if "restored_1" in outputs:
            filled = torch.where(
                targets["mask_1"][: self.pairs], outputs["restored_1"].to(x["whole"][0]), x["whole"][0]
            )
            panels = {"as the student saw it": _drawn(x["masked"][0]), "restored": _drawn(filled), "whole": first}
            subjects = [str(name) for name in batch["subject_1"][: self.pairs]]
            self._write("restored", view_rows_image(panels, subjects, title, self._in_a_block(first.shape[1:])), engine)

    def _in_a_block(self, size: Sequence[int]) -> list[int]:
        """The middle voxel of the block that holds the middle of a view, which may be a border of blocks."""
        blocks = ensure_tuple_rep(self.prepare_batch.block_size, len(size))
        return [min(n // 2 // block * block + block // 2, n - 1) for n, block in zip(size, blocks)]

    def _write(self, name: str, picture: np.ndarray, engine: Engine) -> None:
        from PIL import Image

        self.output_dir.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self.output_dir / f"{name}_epoch_{engine.state.epoch:04d}.png")
        if self.writer is not None:
            self.writer.add_image(name, picture, engine.state.epoch, dataformats="HWC")

    @torch.no_grad()
    def _ask(self, x: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The student's outputs, its mode kept."""
        training = self.student.training
        self.student.eval()
        outputs = self.student(x)
        self.student.train(training)
        return outputs


def _drawn(views: torch.Tensor) -> np.ndarray:
    """The first channel of views `(N, C, *spatial)`."""
    return views[:, 0].float().cpu().numpy()
