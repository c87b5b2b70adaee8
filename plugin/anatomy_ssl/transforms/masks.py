"""Masks of structures that may overlap, one channel each, from mask files or a label map."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from anatomy_ssl.data.reading import BadImageError, check_volume, first_path, read_image
from anatomy_ssl.transforms.labels import class_values
from anatomy_ssl.transforms.points import label_mask

__all__ = ["StructureMasksd", "mask_keys"]

Structures = Mapping[str, "str | int | Sequence[int] | None"]
ALPHA = (2, 4)  # channels of pictures whose last one is no colour


def mask_keys(structures: Structures, label_key: str = "label") -> list[str]:
    """The keys of an item that hold the paths of the structures' files.

    Args:
        structures: see `StructureMasksd`.
        label_key: of the label map.
    """
    return list(dict.fromkeys(s if isinstance(s, str) else label_key for s in structures.values()))


class StructureMasksd(MapTransform):
    """Add the masks of all structures, stacked, on the pixel grid of the image.

    Args:
        keys: the image, one key; already read, `(C, *spatial)`, and not yet resized or turned.
        structures: name -> key of an item under which the path of the structure's mask file is; or its value, or
            values, in the one label map under `label_key`, None for all but 0. A mask file has two values, of which one
            is 0. Files may have 1 / M of the image's pixels along every axis, M a whole number, as SCR's masks of
            JSRT's radiographs have: each pixel is then repeated.
        label_key: where the masks go: `(K, *spatial)` uint8 of 0 and 1, in the order of the structures; and where the
            path of a label map is.

    Raises:
        ValueError: if there are no structures, or one is neither a key nor whole numbers.
        BadImageError: if an item lacks the file of a structure, or a file is no mask or of another size than the image.
    """

    def __init__(self, keys: KeysCollection, structures: Structures, label_key: str = "label") -> None:
        super().__init__(keys)
        named = structures if isinstance(structures, Mapping) else {}
        self.files = {name: key if isinstance(key, str) else label_key for name, key in named.items()}
        values = {name: value for name, value in named.items() if not isinstance(value, str)}
        self.values = class_values(values) if values or not named else {}  # type: ignore[arg-type]
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the files."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            maps: dict[str, torch.Tensor] = {}
            masks = []
            for name, file_key in self.files.items():
                path = d.get(file_key)
                if path is None:
                    raise BadImageError(_path(image, d), f"the datalist gives no mask of the {name} ({file_key!r})")
                if file_key not in maps:
                    maps[file_key] = _on_grid(_read(path, image), path, image, name)
                label = maps[file_key]
                masks.append(label_mask(label, self.values[name]) if name in self.values else _mask(label, path, name))
            stacked = torch.cat(masks).to(torch.uint8)  # (K, *spatial)
            d[self.label_key] = MetaTensor(stacked, affine=image.affine)
        return d


def _path(image: torch.Tensor, data: Mapping[Hashable, Any]) -> str:
    """What an image is known by."""
    return str(getattr(image, "meta", {}).get("filename_or_obj") or data.get("source", "an image"))


def _read(path: Any, image: torch.Tensor) -> torch.Tensor:
    """A map `(1, *spatial)` of a file; pictures in colour as the largest of theirs."""
    volume = check_volume(read_image(path), path, image.ndim - 1, channels=None).as_tensor()
    colours = volume[:-1] if volume.shape[0] in ALPHA else volume
    return colours.amax(dim=0, keepdim=True)


def _on_grid(label: torch.Tensor, path: Any, image: torch.Tensor, name: str) -> torch.Tensor:
    """The map with as many pixels as the image."""
    own, wanted = tuple(label.shape[1:]), tuple(image.shape[1:])
    times = wanted[0] // own[0]
    if tuple(n * times for n in own) != wanted:
        raise BadImageError(
            path,
            f"the mask of the {name} has {_size(own)} pixels and its image {first_path(_path(image, {})).name} "
            f"{_size(wanted)}: give both on one grid, or the image with whole multiples of the mask's pixels",
        )
    for axis in range(1, label.ndim) if times > 1 else ():
        label = label.repeat_interleave(times, dim=axis)
    return label


def _mask(label: torch.Tensor, path: Any, name: str) -> torch.Tensor:
    """Where a mask is, `(1, *spatial)` bool."""
    found = torch.unique(label).tolist()
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        raise BadImageError(
            path,
            f"the mask of the {name} holds {len(found)} values ({', '.join(f'{v:g}' for v in found[:4])}"
            f"{', ...' if len(found) > 4 else ''}), not 0 and one other: threshold it, or give a label map under "
            "'label' and the structures' values in it",
        )
    return label != 0


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
