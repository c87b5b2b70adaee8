"""Pictures of sampled crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ignite.engine import Engine

from anatomy_ssl.data.dataset import ScanDataset
from anatomy_ssl.handlers import pictures
from anatomy_ssl.handlers.pictures import CropPictures
from anatomy_ssl.transforms import ForegroundPointsd, LoadVolumed, RandPhysicalCropsd

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


class Writer:
    """Stands for TensorBoard's."""

    def __init__(self) -> None:
        self.images: list[tuple[str, tuple[int, ...], int]] = []

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        """Remember it."""
        assert dataformats == "HWC"
        self.images.append((tag, image.shape, step))


@pytest.fixture
def dataset(write_nifti) -> ScanDataset:
    """One scan, four crops."""
    steps = [LoadVolumed("image"), ForegroundPointsd("image"), RandPhysicalCropsd("image", (8, 6, 4), 4, spacing=2.0)]
    return ScanDataset([{"image": write_nifti(), "subject": "p1"}], steps, progress=False)


def test_pictures_are_drawn_when_due(dataset: ScanDataset, tmp_path: Path) -> None:
    """At the first epoch and every second, as PNG and for TensorBoard."""
    writer, engine = Writer(), Engine(lambda engine, batch: None)
    CropPictures(dataset, str(tmp_path / "pictures"), writer, interval=2).attach(engine)
    engine.run([0], max_epochs=5)
    files = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in files] == [f"crops_epoch_000{epoch}.png" for epoch in (1, 2, 4)]
    for path, (tag, shape, step) in zip(files, writer.images):
        with Image.open(path) as picture:
            assert (tag, shape[:2]) == ("crops", picture.size[::-1])
            assert np.asarray(picture).std() > 1
        assert path.stem.endswith(str(step))


def test_the_crops_drawn_are_those_of_the_epoch(
    dataset: ScanDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their positions and their size in mm, on the prepared volume."""
    drawn: list[tuple[Any, ...]] = []

    def draw(volume: Any, centres: Any, roi_size_mm: list[float], title: str) -> np.ndarray:
        drawn.append((volume, centres, roi_size_mm, title))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(pictures, "crop_overview_image", draw)
    engine = Engine(lambda engine, batch: None)
    CropPictures(dataset, str(tmp_path), interval=1).attach(engine)
    engine.run([0], max_epochs=2)
    for epoch, (volume, centres, size, title) in enumerate(drawn, start=1):
        assert volume is dataset.prepared(0)["image"]
        assert [c.tolist() for c in centres] == [crop["position"].tolist() for crop in dataset[(epoch, 0)]]
        assert size == [16, 12, 8]
        assert title == f"p1, epoch {epoch}"
    assert len(drawn) == 2
