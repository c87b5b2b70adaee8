"""Radiographs of any channels and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms import LoadVolumed
from anatomy_ssl.transforms.radiographs import GreyScaled, ResizeToCoverd


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_files_of_every_kind_become_one_grey_channel(tmp_path: Path, mode: str) -> None:
    """As Pillow converts, whatever the alpha."""
    values = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    picture = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values).convert(mode)
    if mode == "RGB":
        picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8))
        values = np.asarray(picture.convert("L"))
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(255 - values))
    picture.save(tmp_path / "a.png")
    loaded = LoadVolumed("image", spatial_dims=2, channels=None)({"image": str(tmp_path / "a.png")})
    grey = GreyScaled("image")(loaded)["image"]
    assert grey.shape == (1, 9, 12)
    np.testing.assert_allclose(grey[0].T, values, atol=0.51)


def test_too_many_channels() -> None:
    with pytest.raises(BadImageError, match=r"a\.tif: has 5 channels"):
        GreyScaled("image")({"image": torch.zeros(5, 3, 3), "source": "a.tif"})


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (16, 16), (7, 9), (33, 16), (100, 17), (20, 24, 28)])
def test_the_size_is_covered_with_proportions_kept(shape: tuple[int, ...]) -> None:
    """A ramp stays a ramp of the scaled slope about the middle, on every axis."""
    size = (16, 16, 16)[: len(shape)]
    scale = max(s / n for s, n in zip(size, shape))
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape], indexing="ij")
    image = MetaTensor(torch.stack(axes), affine=torch.eye(4))
    found = ResizeToCoverd("image", size)({"image": image})["image"]
    assert found.shape == (len(shape), *size)
    for axis in range(len(shape)):
        line = found[axis].movedim(axis, 0).flatten(1).mean(dim=1)[4:12]
        middle = torch.arange(4, 12) - 7.5
        torch.testing.assert_close(line.as_tensor(), (middle / scale).float(), atol=0.6 / min(1.0, scale), rtol=0.06)


def test_equal_size_changes_nothing() -> None:
    image = MetaTensor(torch.rand(1, 16, 12))
    assert torch.equal(ResizeToCoverd("image", (16, 12))({"image": image})["image"], image)
