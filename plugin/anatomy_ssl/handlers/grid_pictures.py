"""Pictures of what a student makes of distorted views, while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from anatomy_ssl.figures.views import grid_view_image
from anatomy_ssl.transforms.cells import permute_cells

__all__ = ["GridPictures", "put_back"]


class GridPictures:
    """Draws some validation images as PNG and for TensorBoard: each pretext task is seen to be learned, or not.

    For each image the clean first view, what the student saw of it (cells shuffled, or another appearance), its
    restoration, the shuffled cells put where the student says they belong, and the second view; the cells that both
    views show are framed. Panels of heads that are left out are left out.

    Args:
        network: a `StudentTeacher`; its student is drawn, in evaluation mode.
        batches: collated validation images; the first batch is drawn. Their distortions should be the same each time.
        prepare_batch: from such a batch to views and targets, `PrepareGridViews` with a seed.
        output_dir: where `views_epoch_NNNN.png` go.
        grid_size: cells along each axis.
        summary_writer: TensorBoard's writer, or None.
        interval: epochs between pictures.
        images: rows of a picture, half of them shuffled where the batch has enough of both.
        device: the network's.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        batches: Iterable[Mapping[str, Any]],
        prepare_batch: Callable[..., Any],
        output_dir: str,
        grid_size: Sequence[int],
        summary_writer: Any = None,
        interval: int = 10,
        images: int = 4,
        device: str | torch.device = "cpu",
    ) -> None:
        self.student: Any = network.student
        self.batches, self.prepare_batch, self.output_dir = batches, prepare_batch, Path(output_dir)
        self.grid_size, self.writer, self.interval = tuple(grid_size), summary_writer, interval
        self.images, self.device = images, torch.device(device)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer: at the end of the first epoch and of every `interval`-th."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=self._is_due), self)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch == 1 or epoch % self.interval == 0

    def __call__(self, engine: Engine) -> None:
        """Draw the first batch with the network as it is."""
        from PIL import Image

        with torch.random.fork_rng(devices=[]):  # a loader's iterator draws a number, of which training must not know
            batch = next(iter(self.batches))
        views, targets = self.prepare_batch(batch, device=self.device)
        outputs = self._ask(views)
        shuffled, kept = ((~targets["ordered"]).nonzero()[:, 0], targets["ordered"].nonzero()[:, 0])
        most = max(self.images // 2, self.images - len(kept))
        rows = torch.cat([shuffled[:most], kept[: self.images - min(most, len(shuffled))]])
        tensors = {**outputs, **targets, "shown": views[0], "second": views[1]}
        chosen = {name: value[rows].float().cpu() for name, value in tensors.items() if torch.is_tensor(value)}
        names = [f"{batch['subject'][i]}\n{_done(outputs, targets, i)}" for i in rows.tolist()]
        picture = self._draw(chosen, names, f"epoch {engine.state.epoch}")
        self.output_dir.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self.output_dir / f"views_epoch_{engine.state.epoch:04d}.png")
        if self.writer is not None:
            self.writer.add_image("views", picture, engine.state.epoch, dataformats="HWC")

    @torch.no_grad()
    def _ask(self, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The student's outputs, its mode kept."""
        training = self.student.training
        self.student.eval()
        outputs = self.student(views)
        self.student.train(training)
        return outputs

    def _draw(self, chosen: Mapping[str, torch.Tensor], names: Sequence[str], title: str) -> np.ndarray:
        """Panels `(N, *spatial)`, first channel, of the chosen images."""
        panels = {"view 1": chosen["clean"], "as the student saw it": chosen["shown"]}
        empty = {}
        if "restored" in chosen:
            panels["restored"] = chosen["restored"]
        if "order" in chosen:
            panels["put in order"], nothing = put_back(chosen["shown"], chosen["order"], self.grid_size)
            empty["put in order"] = nothing.unflatten(1, self.grid_size).numpy()
        panels["view 2"] = chosen["second"]
        match = chosen["match"].long()
        seen = torch.zeros(len(match), match.shape[1] + 1, dtype=torch.bool)
        seen = seen.scatter_(1, match % seen.shape[1], value=True)[:, :-1]  # -1, no match, falls on the last
        frames = {"view 1": match >= 0, "view 2": seen}
        return grid_view_image(
            {name: panel[:, 0].numpy() for name, panel in panels.items()},
            self.grid_size,
            {name: cells.unflatten(1, self.grid_size).numpy() for name, cells in frames.items()},
            empty,
            names,
            title,
        )


def _done(outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor], row: int) -> str:
    """What was done to an image, and for shuffled ones the share of cells that the student names."""
    if targets["ordered"][row]:
        return "appearance distorted"
    if "order" not in outputs:
        return "shuffled"
    right = (outputs["order"][row].argmax(dim=1) == targets["target_order"][row]).float().mean()
    return f"shuffled, {float(right):.0%} named"


def put_back(shown: torch.Tensor, scores: torch.Tensor, grid_size: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Move every cell of a view to the place that has its highest score; of several, the surest stays.

    Args:
        shown: `(N, C, *spatial)` views with cells in any order.
        scores: `(N, T, T)`, for each place the scores of the cells that it may show.
        grid_size: cells along each axis.

    Returns:
        The view `(N, C, *spatial)`, and `(N, T)` booleans: places that no cell was moved to, whose content means
        nothing.
    """
    sure, place = scores.softmax(dim=2).max(dim=2)  # (N, T)
    source = torch.full_like(place, -1)
    for row, (rank, where) in enumerate(zip(sure.argsort(dim=1), place)):
        for cell in rank.tolist():  # the surest last
            source[row, where[cell]] = cell
    return permute_cells(shown, source.clamp(min=0), grid_size), source < 0
