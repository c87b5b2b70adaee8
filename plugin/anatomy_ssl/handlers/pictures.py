"""Pictures that show whether training sees what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from anatomy_ssl.data.dataset import ScanDataset
from anatomy_ssl.data.lookup_volume import LookupVolume
from anatomy_ssl.figures.crops import crop_overview_image


class CropPictures:
    """Draws one volume's crops at their positions, as PNG and for TensorBoard: wrong geometry is seen at a glance.

    Args:
        dataset: the training data; its item `index` is drawn with the crops of the current epoch.
        output_dir: where `crops_epoch_NNNN.png` go.
        summary_writer: TensorBoard's writer, or None.
        interval: epochs between pictures.
        index: which item is drawn.
        image_key: the volume.
    """

    def __init__(
        self,
        dataset: ScanDataset,
        output_dir: str,
        summary_writer: Any = None,
        interval: int = 10,
        index: int = 0,
        image_key: str = "image",
    ) -> None:
        self.dataset, self.output_dir, self.writer = dataset, Path(output_dir), summary_writer
        self.interval, self.index, self.image_key = interval, index, image_key

    def attach(self, engine: Engine) -> None:
        """Register with a trainer: at the first epoch and at every `interval`-th."""
        engine.add_event_handler(Events.EPOCH_STARTED(event_filter=self._is_due), self)

    def _is_due(self, engine: Engine, epoch: int) -> bool:
        return epoch == 1 or epoch % self.interval == 0

    def __call__(self, engine: Engine) -> None:
        """Draw the crops that this epoch takes from the volume."""
        from PIL import Image

        volume = self.dataset.prepared(self.index)[self.image_key]
        volume = volume.to_metatensor() if isinstance(volume, LookupVolume) else volume
        crops = self.dataset[(engine.state.epoch, self.index)]
        extent = crops[0]["crop_spacing"] * torch.tensor(crops[0][self.image_key].shape[1:])
        centres = torch.stack([crop["position"] for crop in crops])
        title = f"{crops[0]['subject']}, epoch {engine.state.epoch}"
        picture: np.ndarray = crop_overview_image(volume, centres, extent.tolist(), title=title)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self.output_dir / f"crops_epoch_{engine.state.epoch:04d}.png")
        if self.writer is not None:
            self.writer.add_image("crops", picture, engine.state.epoch, dataformats="HWC")
