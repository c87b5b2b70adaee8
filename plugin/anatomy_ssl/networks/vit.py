"""MONAI's ViT as an encoder of a grid of cells."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import ViT
from monai.utils import ensure_tuple_rep

from .encoders import freeze_cross_attention

__all__ = ["ViTGridEncoder"]


class ViTGridEncoder(ViT):
    """MONAI's ViT with its own weight names, whose tokens come as a map: one for each patch, at the patch's place.

    It takes ViT's arguments but `classification`. The cross-attention that MONAI creates and never uses is frozen.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "classification": False})
        dims = kwargs.get("spatial_dims", 3)
        patch = ensure_tuple_rep(kwargs["patch_size"], dims)
        self.grid_size = tuple(size // p for size, p in zip(ensure_tuple_rep(kwargs["img_size"], dims), patch))
        self.cell_size = patch[0]
        self.num_features = int(self.norm.normalized_shape[0])
        freeze_cross_attention(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images `(N, C, *img_size)` to `(N, num_features, *grid)`.

        Raises:
            ValueError: if the images are not of `img_size`: their position embeddings would be of other places.
        """
        size = tuple(n * self.cell_size for n in self.grid_size)
        if tuple(x.shape[2:]) != size:
            raise ValueError(f"ViTGridEncoder was built for images of {size} voxels, got {tuple(x.shape[2:])}")
        return super().forward(x)[0].mT.unflatten(2, self.grid_size)  # (N, F, *grid)
