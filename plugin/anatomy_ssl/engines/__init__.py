"""Batch preparation and what MONAI's trainers and evaluators lack."""

from .dense import GridEmbeddingInferer
from .embedding import embed_crops
from .evaluation import PositionEvaluation
from .grid_batch import PrepareGridViews
from .parameters import layerwise_parameters
from .prepare_batch import PrepareViews
from .probe import LesionProbe

__all__ = [
    "GridEmbeddingInferer",
    "LesionProbe",
    "PositionEvaluation",
    "PrepareGridViews",
    "PrepareViews",
    "embed_crops",
    "layerwise_parameters",
]
