"""The pipelines that ours stand beside: what a user writes with MONAI's transforms, from the methods' descriptions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CopyItemsd,
    CropForegroundd,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
    Resized,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)

MEAN, STD = 0.5056, 0.252
CURVE_POINTS = 1_000  # of an intensity curve; the method's description gives no number


def foreground_crops(crop: Sequence[int], number: int) -> list:
    """ISImed: crops of the body, intensities scaled by the volume's percentiles."""
    return [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        CropForegroundd("image", source_key="image", allow_smaller=True),
        ScaleIntensityRangePercentilesd("image", lower=5, upper=95, b_min=-1, b_max=1),
        RandSpatialCropSamplesd("image", roi_size=crop, num_samples=number, random_size=False),
    ]


def windowed_crop(crop: Sequence[int]) -> list:
    """Alice: one view in a window of HU."""
    return [
        LoadImaged("image"),
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        ScaleIntensityRanged("image", a_min=-125, a_max=225, b_min=0, b_max=1, clip=True),
        RandSpatialCropd("image", roi_size=crop, random_size=False),
    ]


def distorted_views(side: int, cells: int, cell: int, channels: int, random: np.random.Generator) -> Compose:
    """PEAC: two views of a resized radiograph of `cells` x `cells` cells, the first of them distorted.

    With three channels images are decoded as RGB, as encoders of photographs take them.
    """
    view = [cells * cell] * 2
    mode = "RGB" if channels == 3 else "L"
    return Compose(
        [
            LoadImaged("image", reader="PILReader", converter=lambda image: image.convert(mode)),
            EnsureChannelFirstd("image"),
            Resized("image", spatial_size=[side, side], mode="bilinear"),
            ScaleIntensityd("image"),
            CopyItemsd("image", names=["first", "second"], times=2),
            RandSpatialCropd("first", roi_size=view, random_size=False),
            RandSpatialCropd("second", roi_size=view, random_size=False),
            Lambdad("first", lambda image: distort(image, cells, cell, random)),
            NormalizeIntensityd(["first", "second"], subtrahend=MEAN, divisor=STD),
        ]
    )


def distort(image: MetaTensor, cells: int, cell: int, random: np.random.Generator) -> torch.Tensor:
    """Cells in a random order, or another appearance, of one view `(C, H, W)` from 0 to 1."""
    values = np.ascontiguousarray(image.as_tensor().movedim(0, -1).numpy())  # (H, W, C)
    if random.random() < 0.5:
        values = shuffle_cells(values, cells, cell, random)
    else:
        values = paint(bend(shuffle_windows(values, random), random), random)
    return torch.from_numpy(values).movedim(-1, 0).contiguous()


def shuffle_cells(image: np.ndarray, cells: int, cell: int, random: np.random.Generator) -> np.ndarray:
    """The grid's cells in a random order."""
    shown = np.empty_like(image)
    for place, source in enumerate(random.permutation(cells * cells)):
        (row, column), (from_row, from_column) = (divmod(int(n), cells) for n in (place, source))
        tile = image[from_row * cell : (from_row + 1) * cell, from_column * cell : (from_column + 1) * cell]
        shown[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = tile
    return shown


def shuffle_windows(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shuffle the pixels of 40 windows."""
    side = len(image)
    for _ in range(40):
        rows, columns = random.integers(1, max(2, side // 10 + 1), size=2)
        row, column = random.integers(side - rows), random.integers(side - columns)
        window = image[row : row + rows, column : column + columns]
        window[...] = random.permutation(window.reshape(-1, image.shape[2])).reshape(window.shape)
    return image


def bend(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A Bezier curve of the intensities, by interpolation between its points."""
    if random.random() >= 0.9:
        return image
    t = np.linspace(0, 1, CURVE_POINTS)[:, None]
    points = np.array([[0, 0], random.random(2), random.random(2), [1, 1]])
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    xs, ys = (weights @ points).T
    if random.random() < 0.5:
        xs, ys = np.sort(xs), np.sort(ys)
    rising = np.argsort(xs)
    return np.interp(image, xs[rising], ys[rising]).astype(np.float32)


def paint(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noise inside five windows, or outside of five larger ones."""
    if random.random() >= 0.9:
        return image
    side, keep = len(image), random.random() < 0.8
    low, high = (side * 3 // 7, side * 4 // 7) if keep else (side // 6, side // 3)
    result = random.random(image.shape, dtype=np.float32) if keep else image.copy()
    for _ in range(5):
        rows, columns = random.integers(low, high + 1, size=2)
        row, column = random.integers(side - rows), random.integers(side - columns)
        box = (slice(row, row + rows), slice(column, column + columns))
        result[box] = image[box] if keep else random.random((rows, columns, image.shape[2]), dtype=np.float32)
    return result
