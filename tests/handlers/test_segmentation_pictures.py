"""Pictures of segmentations: of the first scans, where there is something to see, in files and in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.utils import one_hot
from PIL import Image

from anatomy_ssl.handlers import SegmentationPictures


def output(name: str, size: tuple[int, ...], found: int) -> dict[str, Any]:
    """A scan with a cube of class 1, of which the network says `found`."""
    image = MetaTensor(torch.rand(1, *size), affine=torch.diag(torch.tensor([2.0, 2, 4, 1])))
    image.meta["filename_or_obj"] = f"{name}.nii.gz"
    label = torch.zeros(1, *size)
    label[(slice(None),) + (slice(2, 6),) * len(size)] = 1
    return {"image": image, "label": one_hot(label, 3, dim=0), "pred": one_hot(label * found, 3, dim=0)}


class Writer:
    """Keeps what TensorBoard would get."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def add_figure(self, tag: str, figure: Any, step: int) -> None:
        self.calls.append((tag, step))


@pytest.mark.parametrize("size", [(12, 14, 10), (16, 12)])
def test_the_first_scans_are_drawn(tmp_path: Path, size: tuple[int, ...]) -> None:
    writer = Writer()
    pictures = SegmentationPictures(["liver", "spleen"], tmp_path, number=2, summary_writer=writer)
    for epoch in (1, 2):
        pictures.reset(None)  # type: ignore[arg-type]
        for k, name in enumerate("abc"):
            state = SimpleNamespace(output=[output(name, size, k)], epoch=epoch)
            pictures(SimpleNamespace(state=state))  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["segmentation_a.png", "segmentation_b.png"]
    assert writer.calls == [(f"segmentation/{n}", e) for e in (1, 2) for n in "ab"]
    nothing, right = (np.asarray(Image.open(tmp_path / f"segmentation_{n}.png").convert("RGB"), int) for n in "ab")
    coloured = [(np.ptp(picture, axis=2) > 60).sum() for picture in (nothing, right)]
    assert coloured[1] > 1.5 * coloured[0] > 0  # the second scan has the class in both rows
