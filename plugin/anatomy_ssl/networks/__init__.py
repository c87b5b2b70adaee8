"""Encoders and heads."""

from .encoders import PooledEncoder, SegResNetEncoder, with_group_norm
from .heads import EncoderWithHeads

__all__ = ["EncoderWithHeads", "PooledEncoder", "SegResNetEncoder", "with_group_norm"]
