"""Point sets that say where in a volume crops may lie: the body, or the voxels of a label."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from anatomy_ssl.data.reading import BadImageError


def voxel_to_world(affine: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """World mm `(N, D)` float32 of voxel indices `(N, D)`, by the affine `(D + 1, D + 1)`, computed in float64."""
    dims = index.shape[-1]
    a = affine.to(torch.float64)
    return (index.to(torch.float64) @ a[:dims, :dims].T + a[:dims, -1]).float()


def otsu_threshold(values: np.ndarray) -> float:
    """The intensity that parts two classes with the largest variance between them (Otsu 1979).

    Values `(*spatial)`, 2D or 3D; the outermost thousandth at either end (metal, artefacts) does not stretch the
    histogram.
    """
    low, high = np.percentile(values, [0.1, 99.9])
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(np.clip(values, low, high).astype(np.float32)))
    return float(otsu.GetThreshold())


def body_mask(volume: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """The largest connected region above a threshold (Otsu's by default) with its holes filled: lungs count as body.

    Args:
        volume: `(*spatial)`. Holes are filled in 3D and in every slice of every axis, since airways open outwards.
        threshold: intensity; None takes Otsu's.

    Returns:
        boolean mask; empty where nothing lies above the threshold.
    """
    if volume.min() == volume.max():
        return np.zeros(volume.shape, dtype=bool)
    mask = volume > (otsu_threshold(volume) if threshold is None else threshold)
    components, count = ndimage.label(mask)
    if count == 0:
        return mask
    mask = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    for axis in range(mask.ndim if mask.ndim > 2 else 0):
        planes = np.moveaxis(mask, axis, 0)
        for plane in planes:
            plane[...] = ndimage.binary_fill_holes(plane)
    return ndimage.binary_fill_holes(mask)


class ForegroundPointsd(MapTransform):
    """Add the body's voxels, on a coarse grid, as points in world mm: candidates for crop centres.

    Millimetres outlive every later flip, crop or resampling, which an index list or a mask would not.

    Args:
        keys: the image (its first channel is looked at).
        points_key: where `(N, D)` float32 world mm go.
        threshold: intensity above which a voxel is foreground; None takes Otsu's threshold. The largest component
            counts, with its holes filled.
        step: distance between grid points in mm; never finer than the voxels.

    Raises:
        BadImageError: when nothing lies above the threshold.
    """

    def __init__(
        self,
        keys: KeysCollection,
        points_key: str = "foreground",
        threshold: float | None = None,
        step: float = 8.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.points_key, self.threshold, self.step = points_key, threshold, step

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the points of the first key's image."""
        d = dict(data)
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            stride = [max(1, round(self.step / float(s))) for s in image.pixdim[: image.ndim - 1]]
            # floats, by which a volume of integers has the same threshold as one of floats
            grid = image.as_tensor()[0][tuple(slice(s // 2, None, s) for s in stride)].float().numpy()
            index = np.argwhere(body_mask(grid, self.threshold))
            if len(index) == 0:
                raise BadImageError(
                    image.meta.get("filename_or_obj", key), "its foreground is empty: nothing lies above the threshold"
                )
            voxel = torch.from_numpy(index * stride + [s // 2 for s in stride])
            d[self.points_key] = voxel_to_world(image.affine, voxel)
        return d


class LabelPointsd(MapTransform):
    """Add the voxels of a label map as points in world mm: candidates for crop centres, such as lesions.

    Args:
        keys: the label map `(1, *spatial)`.
        points_key: where `(N, D)` float32 world mm go; `(0, D)` where the label is absent.
        labels: label values that count; None takes every non-zero one.
        max_points: an evenly spaced subset is kept beyond that many.
    """

    def __init__(
        self,
        keys: KeysCollection,
        points_key: str = "label_points",
        labels: list[int] | None = None,
        max_points: int = 20000,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.points_key, self.labels, self.max_points = points_key, labels, max_points

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the points of the label map."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.points_key] = label_points(d[key], self.labels, self.max_points)
        return d


def label_mask(values: torch.Tensor, labels: list[int] | None = None) -> torch.Tensor:
    """Where a label map carries one of the labels (None: any but zero); boolean, of the same shape."""
    rounded = values.round() if values.is_floating_point() else values
    if labels is None:
        return rounded != 0
    # in float32, which holds labels that an integer type of the map does not
    return torch.isin(rounded, torch.tensor(labels, dtype=torch.promote_types(values.dtype, torch.float32)))


def label_points(label: MetaTensor, labels: list[int] | None = None, max_points: int | None = None) -> torch.Tensor:
    """World mm `(N, D)` of the voxels of a label map `(1, *spatial)` that carry one of the labels (None: not zero)."""
    index = label_mask(label.as_tensor()[0], labels).nonzero()
    if max_points is not None and len(index) > max_points:
        index = index[torch.linspace(0, len(index) - 1, max_points).long()]
    return voxel_to_world(label.affine, index)


class AnatomicalOrigind(MapTransform):
    """Add the patient's reference point, by which positions are compared across patients.

    An `origin` that the datalist gives is kept. Otherwise it is the centroid of one label (say the brainstem) and,
    without a label, the centre of the body's bounding box, which is no more than a stand-in.

    Args:
        keys: label map, or the image with `points_key` computed before.
        labels: label values of the reference structure; None to use the foreground points.
        origin_key: where `(D,)` float32 world mm go.
        points_key: foreground points from `ForegroundPointsd`.

    Raises:
        BadImageError: when the reference structure is not in the label map.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: list[int] | None = None,
        origin_key: str = "origin",
        points_key: str = "foreground",
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.labels, self.origin_key, self.points_key = labels, origin_key, points_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the reference point."""
        d = dict(data)
        if d.get(self.origin_key) is not None:
            d[self.origin_key] = torch.as_tensor(d[self.origin_key], dtype=torch.float32)
            return d
        if self.labels is None:
            points = d[self.points_key]
            d[self.origin_key] = (points.amin(0) + points.amax(0)) / 2
            return d
        for key in self.key_iterator(d):
            points = label_points(d[key], self.labels)
            if len(points) == 0:
                path = d[key].meta.get("filename_or_obj", key)
                raise BadImageError(path, f"labels {self.labels} are absent, so the patient has no reference point")
            d[self.origin_key] = points.mean(0)
        return d
