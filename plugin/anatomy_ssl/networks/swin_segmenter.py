"""Segmentation by a Swin encoder and a decoder of MONAI's blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import nn
from torch.nn import functional as F

from anatomy_ssl.networks.swin import SwinEncoder

__all__ = ["SwinSegmenter"]


class SwinSegmenter(nn.Module):
    """A `SwinEncoder` whose stages a decoder puts together again, up to the pixels.

    The decoder is that of SwinUNETR (Hatamizadeh et al. 2022, arXiv 2201.01266), for any number of stages and any size
    of patches: residual blocks on the map of every stage, transposed convolutions between them, and, within a patch,
    convolutions of the image itself. SwinUNETR's block on the deepest map is left out; the encoder's tokens are
    normalised already, and a grid of one cell has nothing to normalise over.

    The weights are `encoder.*`, under SwinEncoder's own names, and `decoder.*`. All parameters get gradients.

    Args:
        encoder: the stages to decode; 2D or 3D.
        num_classes: structures, which may overlap: one channel of logits for each.
        features: channels of the decoder within a patch, up to the image's own resolution.
    """

    def __init__(self, encoder: SwinEncoder, num_classes: int, features: int = 32) -> None:
        super().__init__()
        self.encoder = encoder
        embedding = encoder.patch_embed.proj
        self.decoder = _Decoder(
            spatial_dims=len(embedding.kernel_size),
            in_channels=embedding.in_channels,
            widths=[embedding.out_channels * 2**stage for stage in range(len(encoder.layers))],
            patch_size=embedding.kernel_size[0],
            features=features,
            out_channels=num_classes,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Segment images.

        Args:
            x: `(N, C, *spatial)`, a multiple of the encoder's `cell_size` along every axis.

        Returns:
            Logits `(N, num_classes, *spatial)`, to be given to a sigmoid.

        Raises:
            ValueError: if the image is no multiple of the cells.
        """
        return self.decoder(x, self.encoder.stages(x))


class _Decoder(nn.Module):
    """From the maps of all stages to logits.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        widths: channels of every stage's map, from fine to coarse.
        patch_size: pixels of the finest map's cells.
        features: channels between the finest map and the image.
        out_channels: of the result.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        widths: Sequence[int],
        patch_size: int,
        features: int,
        out_channels: int,
    ) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> UnetrBasicBlock:
            return UnetrBasicBlock(spatial_dims, inputs, outputs, 3, stride, "instance", res_block=True)

        def up(inputs: int, outputs: int, factor: int) -> UnetrUpBlock:
            return UnetrUpBlock(spatial_dims, inputs, outputs, 3, factor, "instance", res_block=True)

        finer = [*zip(widths[1:], widths[:-1])][::-1]
        factors = _factors(patch_size)
        self.skips = nn.ModuleList([block(width, width) for _, width in finer])
        self.ups = nn.ModuleList([up(coarse, fine, 2) for coarse, fine in finer])
        # the image at full resolution, at half of it, and so on as long as that is finer than a patch
        self.image = nn.ModuleList(
            [block(features if step else in_channels, features, 2 if step else 1) for step in range(len(factors))]
        )
        inputs = [widths[0], *[features] * len(factors)]
        self.patch_ups = nn.ModuleList([up(width, features, factor) for width, factor in zip(inputs, factors)])
        self.head = UnetOutBlock(spatial_dims, inputs[-1], out_channels)

    def forward(self, image: torch.Tensor, stages: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits `(N, K, *spatial)` of the image `(N, C, *spatial)` and its maps, from fine to coarse."""
        x = stages[-1]
        for skip, up, stage in zip(self.skips, self.ups, stages[-2::-1]):
            x = up(x, skip(_normalised(stage)))
        details = []
        for block in self.image:
            image = block(image)
            details.append(image)
        for up, detail in zip(self.patch_ups, details[::-1]):
            x = up(x, detail)
        return self.head(x)


def _factors(patch_size: int) -> list[int]:
    """Steps from patches to pixels: what is odd in one, the rest by halves."""
    halves = 0
    while patch_size % 2 == 0:
        patch_size, halves = patch_size // 2, halves + 1
    return [*([patch_size] if patch_size > 1 else []), *[2] * halves]


def _normalised(stage: torch.Tensor) -> torch.Tensor:
    """Each token to mean 0 and variance 1, as SwinUNETR does with the stages that end without a norm."""
    return F.layer_norm(stage.movedim(1, -1), stage.shape[1:2]).movedim(-1, 1)
