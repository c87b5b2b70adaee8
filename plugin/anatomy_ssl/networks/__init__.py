"""Encoders and heads."""

from .alice import AliceNetwork
from .anatomical_embedding import AnatomicalEmbedding
from .casa import ConditionalAlignment
from .distillation_head import DistillationHead
from .encoders import PooledEncoder, SegResNetEncoder, UNetEncoder, with_group_norm
from .grid_consistency import GridConsistencyNetwork
from .heads import EncoderWithClassifier, EncoderWithHeads
from .hierarchical_transformer import HierarchicalTransformer
from .momentum import StudentTeacher
from .swin import SwinEncoder
from .swin_segmenter import SwinSegmenter
from .swin_unetr_stages import SwinUNETRStages
from .vit import ViTGridEncoder

__all__ = [
    "AliceNetwork",
    "AnatomicalEmbedding",
    "ConditionalAlignment",
    "DistillationHead",
    "EncoderWithClassifier",
    "EncoderWithHeads",
    "GridConsistencyNetwork",
    "HierarchicalTransformer",
    "PooledEncoder",
    "SegResNetEncoder",
    "StudentTeacher",
    "SwinEncoder",
    "SwinSegmenter",
    "SwinUNETRStages",
    "UNetEncoder",
    "ViTGridEncoder",
    "with_group_norm",
]
