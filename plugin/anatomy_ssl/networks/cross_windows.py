"""Decoder stages that attend, window by window, from what they have to an encoder's map; from MONAI's Swin blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    SwinTransformerBlock,
    WindowAttention,
    compute_mask,
    get_window_size,
    window_partition,
    window_reverse,
)
from torch import nn

__all__ = ["ChannelNorm", "CrossBlock", "CrossWindowAttention", "DecoderStage"]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map `(N, C, *g)`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class CrossWindowAttention(WindowAttention):
    """MONAI's window attention, but from one map's tokens, as they are, to another map's keys and values.

    Args:
        dim: features of both maps.
        num_heads: attention heads.
        window_size: tokens of a window along each axis.
    """

    relative_position_index: torch.Tensor

    def __init__(self, dim: int, num_heads: int, window_size: Sequence[int]) -> None:
        super().__init__(dim, num_heads, window_size)
        del self.qkv
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Windows `(B, T, C)` of both maps to `(B, T, C)`."""
        shape = (*x.shape[:2], self.num_heads, -1)
        q = x.view(shape).transpose(1, 2)  # (B, heads, T, C / heads)
        k, v = (part.reshape(shape).transpose(1, 2) for part in self.kv(skip).chunk(2, dim=-1))
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (heads, T, T)
        attended = F.scaled_dot_product_attention(q, k.to(q), v.to(q), attn_mask=bias[None].to(q))
        return self.proj(attended.transpose(1, 2).flatten(2))


class CrossBlock(SwinTransformerBlock):
    """A block whose queries are of the decoder's map and whose keys and values are of the encoder's; nothing shifts.

    Args:
        dim: features of both maps.
        num_heads: attention heads.
        window_size: tokens of a window along each axis; grids are padded to multiples.
        drop_path: stochastic depth.
    """

    def __init__(self, dim: int, num_heads: int, window_size: Sequence[int], drop_path: float = 0.0) -> None:
        super().__init__(dim, num_heads, window_size, [0] * len(window_size), drop_path=drop_path)
        self.attn = CrossWindowAttention(dim, num_heads, window_size)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Maps `(N, *g, C)` of decoder and encoder to `(N, *g, C)`."""
        grid = x.shape[1:-1]
        padded = _padded(grid, self.window_size)
        padding = [side for n, whole in zip(grid[::-1], padded[::-1]) for side in (0, whole - n)]
        windows = (
            window_partition(F.pad(self.norm1(tokens), (0, 0, *padding)), self.window_size) for tokens in (x, skip)
        )
        attended = window_reverse(self.attn(*windows), self.window_size, [len(x), *padded])
        inside = (slice(None), *(slice(n) for n in grid))
        x = x + skip + self.drop_path(attended[inside])
        return x + self.forward_part2(x)


class DecoderStage(nn.Module):
    """Doubles the grid, takes in the encoder's map of that size, and goes on with shifted windows.

    Args:
        dim: features of the encoder's map; the coarser one has twice as many.
        depth: blocks, the first of which attends to the encoder's map.
        num_heads: attention heads.
        window_size: tokens of a window along each axis.
        drop_path: stochastic depth of each block.
    """

    def __init__(
        self, dim: int, depth: int, num_heads: int, window_size: Sequence[int], drop_path: list[float]
    ) -> None:
        super().__init__()
        layer = BasicLayer(dim, depth, num_heads, window_size, drop_path, qkv_bias=True)
        self.window_size, self.shift_size = layer.window_size, layer.shift_size
        self.upsample = _Upsample(len(window_size), dim)
        self.blocks = layer.blocks
        self.blocks[0] = CrossBlock(dim, num_heads, window_size, drop_path[0])

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Maps `(N, 2 C, *g)` and `(N, C, *2 g)` to `(N, C, *2 g)`."""
        x, skip = (tokens.movedim(1, -1).contiguous() for tokens in (self.upsample(x), skip))
        x = self.blocks[0](x, skip)
        grid = x.shape[1:-1]
        window, shift = get_window_size(grid, self.window_size, self.shift_size)
        mask = compute_mask(_padded(grid, window), window, shift, x.device)
        for block in self.blocks[1:]:
            x = block(x, mask)
        return x.movedim(-1, 1)


class _Upsample(nn.Module):
    """Norm, and a transposed convolution that doubles the grid and halves the features."""

    def __init__(self, spatial_dims: int, features: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(2 * features)
        self.up = Conv[Conv.CONVTRANS, spatial_dims](2 * features, features, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.norm(x))


def _padded(grid: Sequence[int], window: Sequence[int]) -> list[int]:
    """The next multiples of the window."""
    return [math.ceil(n / size) * size for n, size in zip(grid, window)]
