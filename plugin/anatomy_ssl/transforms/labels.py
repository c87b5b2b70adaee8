"""Label maps as what a network is trained on: classes of voxels, classes and volumes of crops."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, ensure_tuple

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms.points import label_mask, voxel_to_world

__all__ = ["CheckCoveraged", "ClassIndexd", "LabelPresenced", "LabelVolumed"]


Classes = Mapping[str, "int | Sequence[int] | None"]


def class_values(classes: Classes) -> dict[str, list[int] | None]:
    """Name -> label values, None for every non-zero one.

    Raises:
        ValueError: if there are no classes, or something else than whole numbers for one.
    """
    if not isinstance(classes, Mapping) or not classes:
        raise ValueError(f'classes is {classes!r}: give the names and label values, {{"lesion": [1]}}')
    values: dict[str, list[int] | None] = {}
    for name, given in classes.items():
        numbers = () if given is None else ensure_tuple(given)
        if any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
            raise ValueError(
                f"class {name!r} has the label values {given!r}: give whole numbers, or null for any but 0"
            )
        values[name] = None if given is None else list(numbers)
    return values


class ClassIndexd(MapTransform):
    """Replace the values of a label map by class indices: 0 for background and what is no class, 1..K for the classes.

    Args:
        keys: label maps `(1, *spatial)`.
        classes: name -> label value, values, or None for every non-zero one; the first class has index 1. Where two
            classes name one value, the later one has it.

    Raises:
        ValueError: see `class_values`.
    """

    def __init__(self, keys: KeysCollection, classes: Classes) -> None:
        super().__init__(keys)
        self.values = list(class_values(classes).values())

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the values."""
        d = dict(data)
        for key in self.key_iterator(d):
            index = torch.zeros_like(torch.as_tensor(d[key]))
            for number, values in enumerate(self.values, start=1):
                index[label_mask(torch.as_tensor(d[key]), values)] = number
            d[key] = convert_to_dst_type(index, d[key])[0]
        return d


class LabelVolumed(MapTransform):
    """Replace a crop's label map by the volume that the label takes in it: the target of lesion probes.

    Args:
        keys: crops of label maps `(1, *roi_size)`, cut with mode "nearest".
        labels: label values that count; None takes every non-zero one. Voxels are counted, not values summed.
        volume_key: where the volume goes, mm^3 (2D: mm^2), float32.
        spacing_key: mm between the crop's samples, as `RandPhysicalCropsd` gives it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: list[int] | None = None,
        volume_key: str = "lesion_volume",
        spacing_key: str = "crop_spacing",
    ) -> None:
        super().__init__(keys)
        self.labels, self.volume_key, self.spacing_key = labels, volume_key, spacing_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the volume and drop the label map."""
        d = dict(data)
        for key in self.key_iterator(d):
            mask = label_mask(d.pop(key), self.labels)
            d[self.volume_key] = mask.sum().float() * torch.as_tensor(d[self.spacing_key]).prod()
        return d


class LabelPresenced(MapTransform):
    """Replace a crop's label map by the classes that it holds voxels of: the target of multi-label classification.

    Args:
        keys: crops of label maps `(1, *roi_size)`, cut with mode "nearest".
        classes: class name -> label values; None takes every non-zero one.
        presence_key: where the vector goes, `(K,)` float32 of 0 and 1, in the order of the classes.

    Raises:
        ValueError: see `class_values`.
    """

    def __init__(self, keys: KeysCollection, classes: Classes, presence_key: str = "label") -> None:
        super().__init__(keys)
        self.classes = class_values(classes)
        self.presence_key = presence_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Drop the label map and add the vector."""
        d = dict(data)
        for key in self.key_iterator(d):
            label = d.pop(key)
            d[self.presence_key] = torch.stack([label_mask(label, v).any() for v in self.classes.values()]).float()
        return d


class CheckCoveraged(MapTransform):
    """Refuse a label map that does not cover its image: what lies outside of it would count as free of the label.

    Grids may differ, in spacing and orientation too; a voxel's difference at the edges is left to rounding.

    Args:
        keys: label maps, `(1, *spatial)` each.
        reference_key: the image.

    Raises:
        BadImageError: names both files and their shapes.
    """

    def __init__(self, keys: KeysCollection, reference_key: str = "image") -> None:
        super().__init__(keys)
        self.reference_key = reference_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Compare the image's corners with the label map's extent."""
        image: MetaTensor = data[self.reference_key]
        corners = torch.cartesian_prod(*[torch.tensor([0, n - 1]) for n in image.shape[1:]])
        world = voxel_to_world(image.affine, corners)
        for key in self.key_iterator(dict(data)):
            label: MetaTensor = data[key]
            voxel = voxel_to_world(torch.linalg.inv(label.affine.double()), world)
            last = torch.tensor(label.shape[1:]) - 1
            if bool(((voxel < -1.01) | (voxel > last + 1.01)).any()):
                path, image_path = (v.meta.get("filename_or_obj", "volume") for v in (label, image))
                raise BadImageError(
                    path,
                    f"does not cover {image_path} (shapes {tuple(label.shape[1:])} and {tuple(image.shape[1:])}, each "
                    "with its affine): it is another scan's, or was cropped; correct the label, or leave both out",
                )
        return dict(data)
