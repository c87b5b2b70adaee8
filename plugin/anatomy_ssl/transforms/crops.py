"""Crops that know where they are: many views of one volume whose distances in millimetres are exactly known."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep

from anatomy_ssl.data.lookup_volume import Volume, read_boxes
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms.points import voxel_to_world
from anatomy_ssl.transforms.resampling import resampled_crops


def world_to_voxel(affine: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Voxel coordinates `(N, D)` float64 of world mm `(N, D)`, by the voxel-to-world matrix `(D + 1, D + 1)`."""
    dims = points.shape[-1]
    a = affine.to(torch.float64)
    return torch.linalg.solve(a[:dims, :dims], (points.to(torch.float64) - a[:dims, -1]).T).T


def half_extent(affine: torch.Tensor, roi_size: Sequence[int], spacing: Sequence[float] | None) -> torch.Tensor:
    """Half the reach of a crop along each voxel axis, centre to outermost sample, in voxels `(D,)` float64."""
    reach = (torch.as_tensor(roi_size, dtype=torch.float64) - 1) / 2
    if spacing is None:
        return reach
    dims = len(roi_size)
    inverse = torch.linalg.inv(affine[:dims, :dims].to(torch.float64))
    return inverse.abs() @ (reach * torch.as_tensor(spacing, dtype=torch.float64))


def clamp_centres(
    volume: Volume, centres: torch.Tensor, roi_size: Sequence[int], spacing: Sequence[float] | None
) -> torch.Tensor:
    """Move crop centres so that whole crops lie in the volume, and without `spacing` on the voxel grid.

    Args:
        volume: `(C, *spatial)`.
        centres: `(N, D)` world mm.
        roi_size: crop size in voxels (in samples, where `spacing` is given).
        spacing: mm between samples, or None for the volume's own voxels.

    Returns:
        voxel coordinates `(N, D)` float64 of the centres.

    Raises:
        BadImageError: when the volume is smaller than the crop.
    """
    shape = torch.as_tensor(volume.shape[1:], dtype=torch.float64)
    reach = half_extent(volume.affine, roi_size, spacing)
    if (2 * reach > shape - 1 + 1e-6).any():
        need = [int(n) for n in torch.ceil(2 * reach - 1e-6) + 1]
        raise BadImageError(
            volume.meta.get("filename_or_obj", "volume"),
            f"is smaller ({tuple(volume.shape[1:])} voxels) than the crop ({tuple(need)} of its voxels): lower "
            "crop_size or crop_spacing, pad it with SpatialPadd, or leave it out",
        )
    voxel = world_to_voxel(volume.affine, centres)
    if spacing is None:
        start = torch.minimum((voxel - reach).round().clamp(min=0), shape - 1 - 2 * reach)
        return start + reach
    return torch.minimum(torch.maximum(voxel, reach), shape - 1 - reach)


def crops_at(
    volume: Volume,
    centres: torch.Tensor,
    roi_size: Sequence[int],
    spacing: Sequence[float] | None = None,
    mode: str = "bilinear",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut crops around world points.

    Without `spacing`, crops are boxes of the volume's own voxels, in its own axes: no value is changed. With it, they
    are resampled on a grid along the world's axes (R, A, S), so that they do not depend on how the volume is stored,
    and every crop covers `roi_size * spacing` mm.

    Args:
        volume: `(C, *spatial)` with affine, 2D or 3D, any number of channels.
        centres: `(N, D)` world mm wanted; moved where the crop would leave the volume.
        roi_size: `(D,)` samples.
        spacing: `(D,)` mm between samples, or None.
        mode: "bilinear" (trilinear in 3D) or "nearest", for resampling.

    Returns:
        crops `(N, C, *roi_size)` and their true centres `(N, D)` in world mm, float32.
    """
    voxel = clamp_centres(volume, centres, roi_size, spacing)
    position = voxel_to_world(volume.affine, voxel)
    if spacing is None:
        starts = (voxel - half_extent(volume.affine, roi_size, None)).round().long()
        return read_boxes(volume, starts, roi_size), position
    return resampled_crops(volume, voxel, roi_size, spacing, mode), position


class RandPhysicalCropsd(Randomizable, MapTransform):
    """Draw several crops from a volume and say where in the body each one lies.

    Returns a list of `num_samples` items. Each holds, for every key, a plain tensor `(C, *roi_size)`, and beside it
    `position`: the crop's centre in world mm (RAS+), float32 `(D,)`, computed from the affine and therefore right after
    `Spacingd`, `Orientationd`, flips, pads, crops and affines; and `crop_spacing`: mm between its samples, float32
    `(D,)`. Other entries (subject, origin, ...) are passed on; point sets are not. All keys are cropped at the same
    place in the world, each on its own voxel grid where `spacing` is given; without it they must share one grid.

    Args:
        keys: image and label maps, `(C, *spatial)` each with its affine; the first key decides where crops fit.
        roi_size: crop size in voxels, or in samples where `spacing` is given.
        num_samples: crops per volume.
        spacing: mm between a crop's samples; None takes the volume's own voxels without resampling.
        candidates: name of the entry with candidate centres, `(N, D)` world mm; or several names with their shares.
            What is missing to 1, or has no points in this volume, is drawn from the first set that has points; None
            draws centres anywhere in the volume.
        jitter: centres are moved by up to that many mm along each axis, so that they do not lie on the candidates'
            grid.
        mode: "bilinear" or "nearest", one for each key.
        position_key: where the centre goes.

    Raises:
        BadImageError: when a volume is smaller than the crop, or the volumes of two keys do not cover the same place.

    Example:
        `RandPhysicalCropsd("image", (32, 32, 32), num_samples=16, spacing=(2.0, 2.0, 2.0), candidates="foreground")`
    """

    def __init__(
        self,
        keys: KeysCollection,
        roi_size: Sequence[int],
        num_samples: int = 1,
        spacing: Sequence[float] | float | None = None,
        candidates: str | Mapping[str, float] | None = None,
        jitter: float = 4.0,
        mode: str | Sequence[str] = "bilinear",
        position_key: str = "position",
    ) -> None:
        MapTransform.__init__(self, keys)
        self.roi_size = tuple(int(r) for r in roi_size)
        if num_samples < 1 or min(self.roi_size) < 1:
            raise ValueError(f"roi_size {self.roi_size} and num_samples {num_samples} must be positive")
        self.num_samples = num_samples
        self.spacing = None if spacing is None else ensure_tuple_rep(spacing, len(self.roi_size))
        self.candidates = {candidates: 1.0} if isinstance(candidates, str) else dict(candidates or {})
        if sum(self.candidates.values()) > 1 + 1e-6 or any(share < 0 for share in self.candidates.values()):
            raise ValueError(f"shares of candidates must not be negative nor exceed 1 together: {self.candidates}")
        self.jitter = jitter
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.position_key = position_key

    def draw_centres(self, data: Mapping[Hashable, Any], volume: Volume) -> torch.Tensor:
        """World mm `(num_samples, D)` of centres, before they are moved into the volume."""
        sets = {key: data[key] for key in self.candidates if len(data[key]) > 0}
        if not sets:
            shape = torch.as_tensor(volume.shape[1:], dtype=torch.float64)
            reach = half_extent(volume.affine, self.roi_size, self.spacing)
            unit = torch.from_numpy(self.R.random_sample((self.num_samples, len(shape))))
            return voxel_to_world(volume.affine, reach + unit * (shape - 1 - 2 * reach))
        names = list(sets)
        shares = np.array([self.candidates[name] for name in names])
        shares[0] += 1 - shares.sum()
        drawn = self.R.choice(len(names), self.num_samples, p=shares)
        rows = self.R.random_sample(self.num_samples)
        points = torch.empty(self.num_samples, volume.ndim - 1)
        for number, name in enumerate(names):
            own = np.flatnonzero(drawn == number)
            chosen = (rows[own] * len(sets[name])).astype(np.int64)
            points[torch.from_numpy(own)] = sets[name][torch.from_numpy(chosen)]
        return points + torch.from_numpy(self.R.uniform(-self.jitter, self.jitter, tuple(points.shape))).float()

    def check_same_place(self, reference: Volume, other: Volume, centres: torch.Tensor, position: torch.Tensor) -> None:
        """Refuse a label map whose crops would lie elsewhere, or cover another extent, than the image's."""
        apart = float((position - centres).abs().max())
        same_voxels = torch.allclose(reference.affine[:-1, :-1], other.affine[:-1, :-1], atol=1e-3)
        if apart > 0.1 or (self.spacing is None and not same_voxels):
            path, image = (v.meta.get("filename_or_obj", "volume") for v in (other, reference))
            raise BadImageError(path, f"does not lie on the voxel grid of {image}: resample it, or leave the image out")

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Crop every key at the same random places."""
        d = dict(data)
        reference: Volume = d[self.first_key(d)]
        centres = self.draw_centres(d, reference)
        crops: dict[Hashable, torch.Tensor] = {}
        for i, (key, mode) in enumerate(self.key_iterator(d, self.mode)):
            crops[key], position = crops_at(d[key], centres, self.roi_size, self.spacing, mode)
            if i == 0:
                centres = position
            else:
                self.check_same_place(reference, d[key], centres, position)
        shared = {k: as_value(v) for k, v in d.items() if k not in crops and k not in self.candidates and keep(v)}
        shared["crop_spacing"] = torch.as_tensor(
            reference.pixdim[: reference.ndim - 1] if self.spacing is None else self.spacing
        ).float()
        return [
            {**shared, **{key: crop[i] for key, crop in crops.items()}, self.position_key: centres[i]}
            for i in range(self.num_samples)
        ]


def keep(value: Any) -> bool:
    """Whether an entry of the volume goes along with each of its crops: names, numbers, small tensors; no images."""
    return not isinstance(value, (MetaTensor, dict)) and getattr(value, "ndim", 0) <= 1


def as_value(value: Any) -> Any:
    """A list of numbers, such as a datalist's `origin`, as a float32 tensor, which batches stack row by row."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, float)) for v in value):
        return torch.tensor(value, dtype=torch.float32)
    return value


class CropPositiond(MapTransform):
    """Add the centre of an image, in world mm, from its affine: gives positions to any of MONAI's crop transforms.

    Args:
        keys: `MetaTensor` `(C, *spatial)`, already cropped.
        position_key: where `(D,)` float32 world mm (RAS+) go.
    """

    def __init__(self, keys: KeysCollection, position_key: str = "position") -> None:
        super().__init__(keys)
        self.position_key = position_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the position of the first key's image."""
        d = dict(data)
        image: MetaTensor = d[self.first_key(d)]
        centre = (torch.as_tensor(image.shape[1:], dtype=torch.float64) - 1) / 2
        d[self.position_key] = voxel_to_world(image.affine, centre[None])[0]
        return d
