"""The Swin transformer of the original paper, from MONAI's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2
from monai.utils import ensure_tuple_rep
from torch import nn

__all__ = ["SwinEncoder"]


class SwinEncoder(nn.Module):
    """Swin transformer (Liu et al. 2021, arXiv 2103.14030) that gives one normalised token per cell of the image.

    MONAI's `SwinTransformer`, made for SwinUNETR, merges patches after every stage and ends without the affine norm.
    This is the classification network of the paper: no merging after the last stage, patches normalised after
    embedding, a final LayerNorm; for equal weights its tokens are those of the original code and of timm. The defaults
    are Swin-B. A token covers `patch_size * 2 ** (stages - 1)` voxels along each axis, 32 by default.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        embed_dim: features of the first stage; each later one has twice as many.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: tokens of a window along each axis; best a divisor of every stage's grid, since others are padded.
        patch_size: voxels of a patch along each axis.
        drop_path_rate: stochastic depth of the last block; rises linearly to it.
        use_checkpoint: recompute activations in the backward pass to save memory.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 3,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window_size: Sequence[int] | int = 7,
        patch_size: int = 4,
        drop_path_rate: float = 0.1,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(f"depths {list(depths)} and num_heads {list(num_heads)} must name the same stages")
        self.cell_size = patch_size * 2 ** (len(depths) - 1)
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = PatchEmbed(
            patch_size=patch_size,
            in_chans=in_channels,
            embed_dim=embed_dim,
            norm_layer=nn.LayerNorm,
            spatial_dims=spatial_dims,
        )
        rates = [drop_path_rate * block / max(1, sum(depths) - 1) for block in range(sum(depths))]
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(depths, num_heads)):
            first = sum(depths[:stage])
            merging: Any = PatchMergingV2 if stage < len(depths) - 1 else None  # MONAI wants the class
            self.layers.append(
                BasicLayer(
                    dim=embed_dim * 2**stage,
                    depth=depth,
                    num_heads=heads,
                    window_size=ensure_tuple_rep(window_size, spatial_dims),
                    drop_path=rates[first : first + depth],
                    qkv_bias=True,
                    downsample=merging,
                    use_checkpoint=use_checkpoint,
                )
            )
        self.norm = nn.LayerNorm(self.num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            x: `(N, C, *spatial)`, a multiple of `cell_size` along every axis.

        Returns:
            `(N, num_features, *spatial / cell_size)`.

        Raises:
            ValueError: if the image is no multiple of the cells.
        """
        if any(size % self.cell_size for size in x.shape[2:]):
            raise ValueError(
                f"SwinEncoder has cells of {self.cell_size} voxels, which images of {tuple(x.shape[2:])} voxels do not "
                "consist of: crop or pad them to a multiple"
            )
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x.contiguous())
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)  # (N, F, *grid)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Encode images and keep every stage's map, for decoders.

        Args:
            x: as in `forward`.

        Returns:
            Maps from fine to coarse: of stage k `(N, embed_dim * 2**k, *spatial / (patch_size * 2**k))`, before
            merging and, but for the last, not normalised. The last is what `forward` gives.
        """
        maps: list[torch.Tensor] = []

        def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            maps.append(inputs[0].movedim(-1, 1))

        # MONAI's layer merges at its end and gives nothing of before
        merging = [layer.get_submodule("downsample") for layer in self.layers[:-1]]
        hooks = [module.register_forward_pre_hook(keep) for module in merging]
        try:
            tokens = self(x)
        finally:
            for hook in hooks:
                hook.remove()
        return [*maps, tokens]
