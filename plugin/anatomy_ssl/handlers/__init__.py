"""Things that listen during training."""

from ..switches import switch
from .checkpoint import ExportEncoder, TrainingCheckpoint, own_process_group
from .dice_tables import DiceTable
from .embeddings import EmbeddingWriter
from .finetuning import FreezeUntil, SaveNetwork
from .grid_pictures import GridPictures
from .momentum import MomentumTeacher
from .pair_pictures import PairPictures
from .pictures import CropPictures
from .predictions import ClassifierTables
from .probabilities import SaveProbabilities
from .schedules import LearningRate, TeacherTemperature, WeightDecay
from .segmentation_pictures import SegmentationPictures
from .throughput import ThroughputHandler
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
    "DiceTable",
    "EmbeddingWriter",
    "ExportEncoder",
    "FreezeUntil",
    "GridPictures",
    "LearningRate",
    "LossTerms",
    "MomentumTeacher",
    "PairPictures",
    "Progress",
    "SaveNetwork",
    "SaveProbabilities",
    "SeedIterations",
    "SegmentationPictures",
    "StopOnNonFiniteLoss",
    "TeacherTemperature",
    "ThroughputHandler",
    "TrainingCheckpoint",
    "WeightDecay",
    "own_process_group",
    "process_rank",
    "switch",
]
