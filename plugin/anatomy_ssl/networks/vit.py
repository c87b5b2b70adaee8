"""MONAI's ViT as an encoder of a grid of cells."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import ViT
from monai.utils import ensure_tuple_rep
from torch import nn

from .encoders import freeze_cross_attention

__all__ = ["ViTGridEncoder"]


class ViTGridEncoder(ViT):
    """MONAI's ViT with its own weight names, whose tokens come as a map: one for each patch, at the patch's place.

    It takes ViT's arguments but `classification`. The cross-attention that MONAI creates and never uses is frozen.

    Args:
        class_token: a further token that attends with the others and is left out of the map, as in the paper's ViT and
            timm's (Dosovitskiy et al. 2020, arXiv 2010.11929). Weights that were trained with it need it.
        norm_eps: added to the variance in every LayerNorm; timm's ViT has 1e-6.
        kwargs: of MONAI's ViT.
    """

    def __init__(self, class_token: bool = False, norm_eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "classification": False})
        dims = kwargs.get("spatial_dims", 3)
        patch = ensure_tuple_rep(kwargs["patch_size"], dims)
        self.grid_size = tuple(size // p for size, p in zip(ensure_tuple_rep(kwargs["img_size"], dims), patch))
        self.cell_size = patch[0]
        self.num_features = int(self.norm.normalized_shape[0])
        if class_token:  # under this name MONAI's forward puts it before the patches
            self.cls_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, self.num_features), std=0.02))
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = norm_eps
        freeze_cross_attention(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images `(N, C, *img_size)` to `(N, num_features, *grid)`.

        Raises:
            ValueError: if the images are not of `img_size`: their position embeddings would be of other places.
        """
        size = tuple(n * self.cell_size for n in self.grid_size)
        if tuple(x.shape[2:]) != size:
            raise ValueError(f"ViTGridEncoder was built for images of {size} voxels, got {tuple(x.shape[2:])}")
        tokens = super().forward(x)[0][:, int(hasattr(self, "cls_token")) :]
        return tokens.mT.unflatten(2, self.grid_size)  # (N, F, *grid)
