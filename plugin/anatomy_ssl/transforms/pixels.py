"""Which pixel of the file a place in a prepared image is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform

from anatomy_ssl.data.folder import RADIOGRAPH_EXTENSIONS
from anatomy_ssl.data.reading import BadImageError

__all__ = ["PixelFramed"]


class PixelFramed(MapTransform):
    """Note an image's pixels before anything changes its grid, so that they can be found again by its affine.

    Adds `original_size` `(D,)`, pixels of the image as it is, and `pixel_to_mm` `(D + 1, D + 1)`, from these to mm. For
    volumes that is their affine, to world mm (RAS+), which they keep. Radiographs have no world: from here on their
    affine leads to pixels, and `pixel_to_mm` holds the item's `spacing` (mm of a row and of a column), or the file's
    where it has one. NaN where nothing tells: pictures (PNG, JPEG) have none, and 1 mm in every axis is what readers
    say of files without.

    Args:
        keys: one image, `(C, *spatial)`, with rows before columns in two dimensions.
        spacing_key: where an item may have its spacing.

    Raises:
        BadImageError: where the item's spacing is not one positive number for each axis.
    """

    def __init__(self, keys: KeysCollection, spacing_key: str = "spacing") -> None:
        super().__init__(keys)
        self.spacing_key = spacing_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the two entries; a radiograph's affine becomes the identity."""
        d = dict(data)
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            dims = image.ndim - 1
            d["original_size"] = torch.tensor(image.shape[1:])
            d["pixel_to_mm"] = self._pixel_to_mm(d, image, dims)
            if dims == 2:
                d[key] = MetaTensor(image.as_tensor(), affine=torch.eye(3, dtype=torch.float64))
        return d

    def _pixel_to_mm(self, d: Mapping[Hashable, Any], image: MetaTensor, dims: int) -> torch.Tensor:
        affine = torch.as_tensor(to_affine_nd(dims, image.affine), dtype=torch.float64)
        if dims == 3:
            return affine
        # rows came before columns after the file was read
        spacing = affine[:dims, :dims].norm(dim=0).flip(0)
        given, source = d.get(self.spacing_key), str(d.get("source", ""))
        if given is not None:
            spacing = torch.as_tensor(given, dtype=torch.float64)
            if spacing.shape != (dims,) or not (spacing.isfinite() & (spacing > 0)).all():
                raise BadImageError(source, f"its spacing {given} is not {dims} positive numbers of mm")
        elif Path(source).name.lower().endswith(RADIOGRAPH_EXTENSIONS) or bool((spacing == 1).all()):
            spacing = torch.full((dims,), torch.nan, dtype=torch.float64)
        return torch.diag(torch.cat([spacing, torch.ones(1, dtype=torch.float64)]))
