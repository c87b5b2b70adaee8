"""MONAI's SwinUNETR taken apart: encoder, first step of the decoder, the rest of the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import SwinUNETR
from torch import nn

__all__ = ["SwinUNETRStages"]


class SwinUNETRStages(nn.Module):
    """Runs a SwinUNETR step by step, so that what lies between can be used and what is not used is not computed.

    `forward` is `SwinUNETR.forward`, to the bit. The weights are the network's: export `.network`, whose names carry no
    prefix. Sizes are multiples of `stride` (32) along every axis and not `stride` along all of them, since MONAI's
    decoder normalises over the cells of the deepest map. Activation checkpointing is MONAI's `use_checkpoint`.

    Args:
        network: a SwinUNETR, 2D or 3D.

    Attributes:
        num_features: channels of the deepest map.
        decoder_features: channels of the decoder's first map, which is twice as fine.
        stride: voxels of the deepest map's cells along each axis.
    """

    def __init__(self, network: SwinUNETR) -> None:
        super().__init__()
        self.network = network
        self.num_features = 2 * network.swinViT.num_features
        self.decoder_features = network.swinViT.num_features
        self.stride = network.patch_size**5
        self.spatial_dims = len(network.swinViT.patch_size)

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Run the encoder alone.

        Args:
            x: `(N, C, *spatial)`.

        Returns:
            The image itself and the maps of all stages, from fine to coarse; the last is `(N, num_features, *grid)`.

        Raises:
            ValueError: for a size that SwinUNETR does not take.
        """
        size = tuple(x.shape[2:])
        whole = all(n % self.stride == 0 and n > 0 for n in size)
        if len(size) != self.spatial_dims or not whole or max(size) == self.stride:
            raise ValueError(
                f"SwinUNETR takes {self.spatial_dims} axes of a multiple of {self.stride} voxels each, at least one of "
                f"them {2 * self.stride} or more; the crops have {size}"
            )
        return [x, *self.network.swinViT(x, self.network.normalize)]

    def first_decoder(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Run the first step of the decoder: maps of `encode` -> `(N, decoder_features, *finer grid)`."""
        return self.network.decoder5(self.network.encoder10(maps[-1]), maps[-2])

    def restore(self, maps: Sequence[torch.Tensor], first: torch.Tensor) -> torch.Tensor:
        """Run the rest of the decoder.

        Args:
            maps: from `encode`.
            first: from `first_decoder`.

        Returns:
            `(N, out_channels, *spatial)`.
        """
        net = self.network
        x = net.decoder4(first, net.encoder4(maps[3]))
        x = net.decoder3(x, net.encoder3(maps[2]))
        x = net.decoder2(x, net.encoder2(maps[1]))
        return net.out(net.decoder1(x, net.encoder1(maps[0])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the whole network: `(N, C, *spatial)` -> `(N, out_channels, *spatial)`."""
        maps = self.encode(x)
        return self.restore(maps, self.first_decoder(maps))
