"""Pictures of the organs that a network finds, while it is trained and when it is evaluated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from anatomy_ssl.data.folder import file_stem
from anatomy_ssl.figures.canvas import new_figure, save
from anatomy_ssl.figures.segmentation import draw_segmentation

__all__ = ["SegmentationPictures"]


class SegmentationPictures:
    """Draws true and found classes of an evaluator's first scans as `segmentation_NAME.png`, and in TensorBoard.

    The evaluator's output is decollated, with `image`, and `label` and `pred` in one-hot form, background first.

    Args:
        classes: names, without the background.
        output_dir: folder of the pictures; each evaluation replaces them.
        number: of scans.
        summary_writer: TensorBoard's, which keeps them all; None for files alone.
    """

    def __init__(
        self,
        classes: Sequence[str],
        output_dir: str | os.PathLike[str],
        number: int = 3,
        summary_writer: Any = None,
    ) -> None:
        self.classes, self.output_dir, self.number = list(classes), Path(output_dir), number
        self.summary_writer, self.drawn = summary_writer, 0

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def reset(self, engine: Engine) -> None:
        """Begin with the first scan again."""
        self.drawn = 0

    def __call__(self, engine: Engine) -> None:
        """Draw a batch's scans, as long as there are few."""
        output: Any = engine.state.output
        for item in output[: max(0, self.number - self.drawn)]:
            self.drawn += 1
            image = item["image"]
            name = file_stem(str(image.meta.get("filename_or_obj", self.drawn)))
            truth, found = (torch.as_tensor(item[key]).argmax(dim=0).cpu().numpy() for key in ("label", "pred"))
            spacing = [float(s) for s in image.pixdim[: image.ndim - 1]]
            with new_figure(9, 7) as figure:
                pixels = np.asarray(image.as_tensor()[0].cpu())
                draw_segmentation(figure, pixels, truth, found, self.classes, spacing, name)
                save(figure, self.output_dir / f"segmentation_{name}.png")
                if self.summary_writer is not None:
                    self.summary_writer.add_figure(f"segmentation/{name}", figure, engine.state.epoch)
