"""Things that listen during training."""

from ..switches import switch
from .checkpoint import ExportEncoder, TrainingCheckpoint, own_process_group
from .embeddings import EmbeddingWriter
from .finetuning import FreezeUntil, SaveNetwork
from .momentum import MomentumTeacher
from .pictures import CropPictures
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
    "ClipGradients",
    "CollapseAlarm",
    "CropPictures",
    "EmbeddingWriter",
    "ExportEncoder",
    "FreezeUntil",
    "LossTerms",
    "MomentumTeacher",
    "Progress",
    "SaveNetwork",
    "SeedIterations",
    "StopOnNonFiniteLoss",
    "TrainingCheckpoint",
    "own_process_group",
    "process_rank",
    "switch",
]
