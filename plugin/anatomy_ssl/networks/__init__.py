"""Encoders and heads."""

from .encoders import PooledEncoder, SegResNetEncoder, UNetEncoder, with_group_norm
from .grid_consistency import GridConsistencyNetwork
from .heads import EncoderWithClassifier, EncoderWithHeads
from .momentum import StudentTeacher
from .swin import SwinEncoder
from .swin_segmenter import SwinSegmenter
from .vit import ViTGridEncoder

__all__ = [
    "EncoderWithClassifier",
    "EncoderWithHeads",
    "GridConsistencyNetwork",
    "PooledEncoder",
    "SegResNetEncoder",
    "StudentTeacher",
    "SwinEncoder",
    "SwinSegmenter",
    "UNetEncoder",
    "ViTGridEncoder",
    "with_group_norm",
]
