"""What radiographs need before they look alike: one channel, and one size."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import CenterSpatialCrop, MapTransform, Resize

from anatomy_ssl.data.reading import BadImageError

__all__ = ["GreyScaled", "ResizeToCoverd"]

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts


class GreyScaled(MapTransform):
    """Turn RGB and RGBA images grey; images with one channel stay as they are, and alpha is dropped.

    Args:
        keys: images `(C, *spatial)` with 1, 3 or 4 channels; grey with alpha has 2.

    Raises:
        BadImageError: for more channels.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the images by `(1, *spatial)`."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            channels = image.shape[0]
            if channels > 4:
                raise BadImageError(d.get("source", key), f"has {channels} channels, a radiograph has 1 to 4")
            if channels >= 3:
                weights = torch.tensor(LUMINANCE, dtype=image.dtype).view(3, *[1] * (image.ndim - 1))
                d[key] = (image[:3] * weights).sum(dim=0, keepdim=True)
            else:
                d[key] = image[:1]
        return d


class ResizeToCoverd(MapTransform):
    """Scale images, proportions kept, until they just cover a size, and cut what is over from the middle.

    For a square size: the short side becomes the size, and the middle square is kept. Downsampling is smoothed.

    Args:
        keys: images `(C, *spatial)`.
        spatial_size: voxels along each axis.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int]) -> None:
        super().__init__(keys)
        self.spatial_size = tuple(int(size) for size in spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the images by `(C, *spatial_size)`."""
        d = dict(data)
        for key in self.key_iterator(d):
            shape = d[key].shape[1:]
            scale = max(size / length for size, length in zip(self.spatial_size, shape))
            # a whole number may come out a hair too small
            cover = [max(size, math.floor(scale * n + 0.5)) for size, n in zip(self.spatial_size, shape)]
            resized = Resize(cover, mode="trilinear" if len(cover) == 3 else "bilinear", anti_aliasing=scale < 1)(
                d[key]
            )
            d[key] = CenterSpatialCrop(self.spatial_size)(resized)
        return d
