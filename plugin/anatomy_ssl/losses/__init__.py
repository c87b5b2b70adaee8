"""Losses: tensors in, one scalar out, exact across processes. Only `WeightedSumLoss` sees dictionaries."""

from __future__ import annotations

from .barlow import BarlowTwinsLoss
from .consistency import GlobalConsistencyLoss, LocalConsistencyLoss
from .coordinate import CoordinateRegressionLoss
from .distance import PhysicalDistanceLoss
from .distillation import DistillationLoss
from .gather import all_gather_rows, row_counts, sum_over_processes
from .masked import MaskedReconstructionLoss
from .multilabel import MultiLabelLoss
from .ntxent import NTXentLoss
from .order import CellOrderLoss
from .pixel_contrast import PixelContrastLoss
from .weighted_sum import WeightedSumLoss

__all__ = [
    "BarlowTwinsLoss",
    "CellOrderLoss",
    "CoordinateRegressionLoss",
    "DistillationLoss",
    "GlobalConsistencyLoss",
    "LocalConsistencyLoss",
    "MaskedReconstructionLoss",
    "MultiLabelLoss",
    "NTXentLoss",
    "PhysicalDistanceLoss",
    "PixelContrastLoss",
    "WeightedSumLoss",
    "all_gather_rows",
    "row_counts",
    "sum_over_processes",
]
