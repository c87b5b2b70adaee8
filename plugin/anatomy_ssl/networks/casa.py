"""Conditional anatomical semantic alignment (CASA): tokens asked for by other tokens."""

from __future__ import annotations

import torch
from monai.networks.blocks import CrossAttentionBlock, MLPBlock
from torch import nn

__all__ = ["ConditionalAlignment"]


class ConditionalAlignment(nn.Module):
    """One layer of cross-attention: what `context` holds, at the places and by the content of `query`.

    Jiang et al. 2023 (arXiv 2302.05615), after Vaswani et al. 2017: multi-head attention and a feed-forward network,
    each with dropout, a residual and LayerNorm. In evaluation mode, as in a teacher, nothing is dropped.

    Args:
        width: W, of query and context.
        heads: of the attention.
        head_features: length of a head's queries, keys and values.
        feedforward: width of the hidden layer.
        dropout: probability, for attention weights and both branches' outputs.
    """

    def __init__(
        self,
        width: int = 512,
        heads: int = 8,
        head_features: int = 64,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        # not MONAI's flash attention: it drops attention weights in evaluation mode as well
        self.attention = CrossAttentionBlock(width, heads, dropout, dim_head=head_features)
        self.norm_1 = nn.LayerNorm(width)
        self.feedforward = MLPBlock(width, feedforward, dropout)
        self.norm_2 = nn.LayerNorm(width)

    def forward(self, query: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Align.

        Args:
            query: `(N, T, W)` tokens; the result has their number and order.
            context: `(N, S, W)` tokens, in any order.

        Returns:
            `(N, T, W)`.
        """
        x = self.norm_1(query + self.attention(query, context))
        return self.norm_2(x + self.feedforward(x))
