"""Encoders and heads."""

from .encoders import PooledEncoder, SegResNetEncoder, with_group_norm
from .heads import EncoderWithClassifier, EncoderWithHeads

__all__ = ["EncoderWithClassifier", "EncoderWithHeads", "PooledEncoder", "SegResNetEncoder", "with_group_norm"]
