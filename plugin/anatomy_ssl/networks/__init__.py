"""Encoders and heads."""

from .encoders import PooledEncoder, SegResNetEncoder, UNetEncoder, with_group_norm
from .heads import EncoderWithClassifier, EncoderWithHeads

__all__ = [
    "EncoderWithClassifier",
    "EncoderWithHeads",
    "PooledEncoder",
    "SegResNetEncoder",
    "UNetEncoder",
    "with_group_norm",
]
