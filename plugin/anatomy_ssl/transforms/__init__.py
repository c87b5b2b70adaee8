"""Image to views that know where they are in millimetres."""

from .crops import CropPositiond, RandPhysicalCropsd, crops_at
from .distortions import RandCoarseDropout, RandCoarseShuffle, RandomViews
from .load import LoadVolumed
from .points import AnatomicalOrigind, ForegroundPointsd, LabelPointsd, LabelVolumed

__all__ = [
    "AnatomicalOrigind",
    "CropPositiond",
    "ForegroundPointsd",
    "LabelPointsd",
    "LabelVolumed",
    "LoadVolumed",
    "RandCoarseDropout",
    "RandCoarseShuffle",
    "RandPhysicalCropsd",
    "RandomViews",
    "crops_at",
]
