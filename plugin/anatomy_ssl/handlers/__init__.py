"""Things that listen during training."""

from ..switches import switch
from .checkpoint import ExportEncoder, TrainingCheckpoint, own_process_group
from .embeddings import EmbeddingWriter
from .finetuning import FreezeUntil, SaveNetwork
from .grid_pictures import GridPictures
from .momentum import MomentumTeacher
from .pictures import CropPictures
from .predictions import ClassifierTables
from .probabilities import SaveProbabilities
from .training import (
    ClipGradients,
    CollapseAlarm,
    LossTerms,
    Progress,
    SeedIterations,
    StopOnNonFiniteLoss,
    process_rank,
)

__all__ = [
    "ClassifierTables",
    "ClipGradients",
    "CollapseAlarm",
    "CropPictures",
    "EmbeddingWriter",
    "ExportEncoder",
    "FreezeUntil",
    "GridPictures",
    "LossTerms",
    "MomentumTeacher",
    "Progress",
    "SaveNetwork",
    "SaveProbabilities",
    "SeedIterations",
    "StopOnNonFiniteLoss",
    "TrainingCheckpoint",
    "own_process_group",
    "process_rank",
    "switch",
]
