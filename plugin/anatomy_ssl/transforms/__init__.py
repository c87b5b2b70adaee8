"""Image to views that know where they are in millimetres."""

from .cells import RandBezierIntensity, permute_cells
from .crops import CropPositiond, RandPhysicalCropsd, crops_at
from .distortions import RandCoarseDropout, RandCoarseShuffle, RandomViews
from .grid_views import RandGridViewsd, match_cells
from .labels import CheckCoveraged, ClassIndexd, LabelPresenced, LabelVolumed
from .load import LoadVolumed
from .points import AnatomicalOrigind, ForegroundPointsd, LabelPointsd
from .radiographs import DicomWindowd, GreyScaled, ResizeToCoverd

__all__ = [
    "AnatomicalOrigind",
    "CheckCoveraged",
    "ClassIndexd",
    "CropPositiond",
    "DicomWindowd",
    "ForegroundPointsd",
    "GreyScaled",
    "LabelPointsd",
    "LabelPresenced",
    "LabelVolumed",
    "LoadVolumed",
    "RandBezierIntensity",
    "RandCoarseDropout",
    "RandCoarseShuffle",
    "RandGridViewsd",
    "RandPhysicalCropsd",
    "RandomViews",
    "ResizeToCoverd",
    "crops_at",
    "match_cells",
    "permute_cells",
]
