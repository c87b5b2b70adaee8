"""What radiographs need before they look alike: black for air, one channel, and one size."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import SimpleITK as sitk  # noqa: N813
import torch
from monai.config import KeysCollection
from monai.transforms import CenterSpatialCrop, MapTransform, Resize

from anatomy_ssl.data.reading import BadImageError

__all__ = ["DicomWindowd", "GreyScaled", "ResizeToCoverd"]

_PHOTOMETRIC, _BITS, _SIGNED = "0028|0004", "0028|0101", "0028|0103"
_CENTER, _WIDTH, _INTERCEPT, _SLOPE = "0028|1050", "0028|1051", "0028|1052", "0028|1053"
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts


class DicomWindowd(MapTransform):
    """Cut the intensities of DICOM radiographs to the first window of their headers (DICOM PS3.3, C.11.2.1.2).

    Other files, and headers without a window, stay as they are. Not for CT, whose windows hide most of a scan. Images
    whose lowest values are white (MONOCHROME1) need nothing else: SimpleITK turns them round as it reads them, so that
    air is dark in all; the window is turned with them.

    Args:
        keys: images `(C, *spatial)` with rescaled intensities, as `LoadVolumed` gives them, from the file that `source`
            names.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply the window."""
        d = dict(data)
        window = _dicom_window(str(d["source"]))
        for key in self.key_iterator(d):
            d[key] = d[key] if window is None else d[key].clamp(*window)
        return d


def _dicom_window(path: str) -> tuple[float, float] | None:
    """Lowest and highest intensity of a file's window, in the values that SimpleITK reads; None where there is none."""
    header = _dicom_header(path)
    if not (header.get(_CENTER) and header.get(_WIDTH)):
        return None
    center, width = (float(header[tag].split("\\")[0]) for tag in (_CENTER, _WIDTH))
    if header.get(_PHOTOMETRIC) == "MONOCHROME1":
        slope, intercept = float(header.get(_SLOPE) or 1), float(header.get(_INTERCEPT) or 0)
        # stored values v are read as all bits turned: -1 - v, or the largest value less v
        turned = -1 if header.get(_SIGNED) == "1" else 2 ** int(header[_BITS]) - 1
        center = slope * turned + 2 * intercept - center + 1
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def _dicom_header(path: str) -> dict[str, str]:
    """Tags `gggg|eeee` of a DICOM file; empty for other files."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # no DICOM
        return {}
    return {tag: reader.GetMetaData(tag).strip() for tag in reader.GetMetaDataKeys()}


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
                floats = torch.promote_types(image.dtype, torch.float32)
                weights = torch.tensor(LUMINANCE, dtype=floats).view(3, *[1] * (image.ndim - 1))
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
        crop: False keeps what is over.
        max_enlargement: how many times an image may be enlarged; None for any.

    Raises:
        BadImageError: for an image that would have to be enlarged more.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        crop: bool = True,
        max_enlargement: float | None = None,
    ) -> None:
        super().__init__(keys)
        self.spatial_size, self.crop = tuple(int(size) for size in spatial_size), crop
        self.max_enlargement = math.inf if max_enlargement is None else max_enlargement

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the images by `(C, *spatial_size)`, or larger ones."""
        d = dict(data)
        for key in self.key_iterator(d):
            shape = d[key].shape[1:]
            scale = max(size / length for size, length in zip(self.spatial_size, shape))
            if scale > self.max_enlargement:
                raise BadImageError(
                    d.get("source", key),
                    f"has {tuple(shape)} pixels and would be enlarged {scale:.1f} times to cover {self.spatial_size}, "
                    f"more than {self.max_enlargement:g} times: leave it out, train on smaller views, or "
                    "raise max_enlargement",
                )
            # a whole number may come out a hair too small
            cover = [max(size, math.floor(scale * n + 0.5)) for size, n in zip(self.spatial_size, shape)]
            resized = Resize(cover, mode="trilinear" if len(cover) == 3 else "bilinear", anti_aliasing=scale < 1)(
                d[key]
            )
            d[key] = CenterSpatialCrop(self.spatial_size)(resized) if self.crop else resized
        return d
