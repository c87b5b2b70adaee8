"""Losses: tensors in, one scalar out, exact across processes. Only `WeightedSumLoss` sees dictionaries."""

from __future__ import annotations

from .barlow import BarlowTwinsLoss
from .consistency import GlobalConsistencyLoss, LocalConsistencyLoss
from .coordinate import CoordinateRegressionLoss
from .distance import PhysicalDistanceLoss
from .gather import all_gather_rows, row_counts, sum_over_processes
from .multilabel import MultiLabelLoss
from .ntxent import NTXentLoss
from .order import CellOrderLoss
from .weighted_sum import WeightedSumLoss

__all__ = [
    "BarlowTwinsLoss",
    "CellOrderLoss",
    "CoordinateRegressionLoss",
    "GlobalConsistencyLoss",
    "LocalConsistencyLoss",
    "MultiLabelLoss",
    "NTXentLoss",
    "PhysicalDistanceLoss",
    "WeightedSumLoss",
    "all_gather_rows",
    "row_counts",
    "sum_over_processes",
]
