"""Batch preparation and what MONAI's trainers and evaluators lack."""

from .bundle_file import bundle_config
from .cosegmentation import CosegmentationTest
from .dense import GridEmbeddingInferer
from .embedding import embed_crops
from .encoded import EncodedImages
from .evaluation import PositionEvaluation
from .grid_batch import PrepareGridViews
from .grid_evaluation import GridEvaluation
from .heat_map import ClassActivationInferer
from .label_probe import LabelProbe
from .memory import keep_freed_memory
from .pair_batch import PreparePairs
from .parameters import decayed_parameters, layerwise_parameters
from .patch_batch import PreparePatches
from .prepare_batch import PrepareViews
from .probe import LesionProbe
from .step import AccumulatedStep, AutocastInferer, memory_format
from .ten_crop import TenCropInferer
from .tokens import TokenExtraction, TokenInferer
from .visual import CorrespondenceTest, LandmarkTest
from .volume_embedding import ensure_embedding, prepare_embeddings

__all__ = [
    "AccumulatedStep",
    "AutocastInferer",
    "ClassActivationInferer",
    "CorrespondenceTest",
    "CosegmentationTest",
    "EncodedImages",
    "GridEmbeddingInferer",
    "GridEvaluation",
    "LabelProbe",
    "LandmarkTest",
    "LesionProbe",
    "PositionEvaluation",
    "PrepareGridViews",
    "PreparePairs",
    "PreparePatches",
    "PrepareViews",
    "TenCropInferer",
    "TokenExtraction",
    "TokenInferer",
    "bundle_config",
    "decayed_parameters",
    "embed_crops",
    "ensure_embedding",
    "keep_freed_memory",
    "layerwise_parameters",
    "memory_format",
    "prepare_embeddings",
]
