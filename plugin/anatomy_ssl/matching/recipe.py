"""What a trained anatomical embedding asks of volumes, as plain data that is kept with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from monai.transforms import (
    Orientationd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    Transform,
)

from anatomy_ssl.networks.anatomical_embedding import AnatomicalEmbedding
from anatomy_ssl.transforms.load import LoadVolumed
from anatomy_ssl.transforms.radiographs import DicomWindowd, GreyScaled, ResizeToCoverd
from anatomy_ssl.transforms.units import CheckHounsfieldd

__all__ = ["EmbeddingRecipe"]


@dataclass(frozen=True)
class EmbeddingRecipe:
    """Preparation of volumes and architecture of the network; one record serves training, embedding and matching.

    Args:
        network: arguments of `AnatomicalEmbedding` beyond `spatial_dims` and `in_channels`.
        spatial_dims: 2 or 3.
        channels: of the images.
        spacing: mm between samples, along the axes R, A, S; None keeps the images' own pixels.
        image_size: pixels that images are scaled to just cover, proportions kept, where `spacing` is None (radiographs,
            whose files seldom say how large a pixel is).
        window: intensities that become -1 and 1, in the images' units (HU for CT); beyond them is clipped. None takes
            `percentiles`.
        percentiles: of an image's own intensities that become -1 and 1, where there is no `window` (MR, radiographs).
        units: what becomes of CTs that are not in Hounsfield units, where there is a `window`: "raise", "shift" or
            "off", see `CheckHounsfieldd`.
        patch_size: voxels of a training patch, and of the windows that a volume is embedded by.

    Raises:
        ValueError: if neither or both of `window` and `percentiles` are given, or a size does not fit `spatial_dims`.
    """

    network: dict[str, Any] = field(default_factory=dict)
    spatial_dims: int = 3
    channels: int = 1
    spacing: tuple[float, ...] | None = (2.0, 2.0, 2.0)
    image_size: tuple[int, ...] | None = None
    window: tuple[float, float] | None = (-1000.0, 1000.0)
    percentiles: tuple[float, float] | None = None
    units: str = "raise"
    patch_size: tuple[int, ...] = (96, 96, 96)

    def __post_init__(self) -> None:
        for name in ("spacing", "image_size", "window", "percentiles", "patch_size"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if (self.window is None) == (self.percentiles is None):
            raise ValueError(
                f"give one of window {self.window} and percentiles {self.percentiles}, not both or neither"
            )
        if self.spacing is not None and self.image_size is not None:
            raise ValueError(f"spacing {self.spacing} fixes the size of an image: give no image_size {self.image_size}")
        sizes: Sequence[Sequence[float] | None] = (self.spacing, self.image_size, self.patch_size)
        if any(size is not None and len(size) != self.spatial_dims for size in sizes):
            raise ValueError(
                f"spacing {self.spacing}, image_size {self.image_size} and patch_size {self.patch_size} need one value "
                f"for each of {self.spatial_dims} axes"
            )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EmbeddingRecipe:
        """The recipe in a record of weights, as `to_record` gave it.

        Raises:
            ValueError: for a record of something else.
        """
        try:
            return cls(**record)
        except TypeError as error:
            raise ValueError(f"this is no record of an anatomical embedding: {error}") from error

    def to_record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def build(self) -> AnatomicalEmbedding:
        """A network of this architecture, with random weights."""
        return AnatomicalEmbedding(self.spatial_dims, self.channels, **self.network)

    def preparation(self, keys: str = "image") -> list[Callable[..., Any]]:
        """Transforms from a file to what the network sees: axes R, A, S whatever the storage, one spacing, -1 to 1."""
        steps: list[Transform]
        if self.spatial_dims == 2 and self.channels == 1:  # radiographs, often stored in colour
            steps = [LoadVolumed(keys, spatial_dims=2, channels=None), DicomWindowd(keys), GreyScaled(keys)]
        else:
            steps = [LoadVolumed(keys, spatial_dims=self.spatial_dims, channels=self.channels)]
        if self.window is not None:
            steps.append(CheckHounsfieldd(keys, mode=self.units))
        steps.append(Orientationd(keys, axcodes="RAS"[: self.spatial_dims], labels=None))
        if self.image_size is not None:
            steps.append(ResizeToCoverd(keys, spatial_size=self.image_size, crop=False))
        if self.spacing is not None:
            steps.append(Spacingd(keys, pixdim=self.spacing, diagonal=True, dtype=np.float32))
        if self.window is not None:
            low, high = self.window
            steps.append(ScaleIntensityRanged(keys, a_min=low, a_max=high, b_min=-1, b_max=1, clip=True))
        elif self.percentiles is not None:
            low, high = self.percentiles
            steps.append(ScaleIntensityRangePercentilesd(keys, lower=low, upper=high, b_min=-1, b_max=1, clip=True))
        return list(steps)
