"""Image to views that know where they are in millimetres."""

from .crops import CropPositiond, RandPhysicalCropsd, crops_at
from .distortions import RandCoarseDropout, RandCoarseShuffle, RandomViews
from .labels import CheckCoveraged, ClassIndexd, LabelPresenced, LabelVolumed
from .load import LoadVolumed
from .points import AnatomicalOrigind, ForegroundPointsd, LabelPointsd

__all__ = [
    "AnatomicalOrigind",
    "CheckCoveraged",
    "ClassIndexd",
    "CropPositiond",
    "ForegroundPointsd",
    "LabelPointsd",
    "LabelPresenced",
    "LabelVolumed",
    "LoadVolumed",
    "RandCoarseDropout",
    "RandCoarseShuffle",
    "RandPhysicalCropsd",
    "RandomViews",
    "crops_at",
]
