"""Batch preparation and what MONAI's trainers and evaluators lack."""

from .cosegmentation import CosegmentationTest
from .dense import GridEmbeddingInferer
from .embedding import embed_crops
from .encoded import EncodedImages
from .evaluation import PositionEvaluation
from .grid_batch import PrepareGridViews
from .grid_evaluation import GridEvaluation
from .heat_map import ClassActivationInferer
from .label_probe import LabelProbe
from .parameters import layerwise_parameters
from .prepare_batch import PrepareViews
from .probe import LesionProbe
from .ten_crop import TenCropInferer
from .tokens import TokenExtraction, TokenInferer
from .visual import CorrespondenceTest, LandmarkTest

__all__ = [
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
    "PrepareViews",
    "TenCropInferer",
    "TokenExtraction",
    "TokenInferer",
    "embed_crops",
    "layerwise_parameters",
]
