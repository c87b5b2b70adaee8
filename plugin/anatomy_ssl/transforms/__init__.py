"""Image to views that know where they are in millimetres."""

from .block_mask import block_mask
from .cells import RandBezierIntensity, permute_cells
from .crops import CropPositiond, RandPhysicalCropsd, crops_at
from .distortions import RandCoarseDropout, RandCoarseShuffle, RandomViews
from .findings import FindingsVectord
from .grid_views import RandGridViewsd, match_cells
from .heat_map import ClassProbabilitiesd, HeatMapd, SaveHeatMapsd
from .intensity import ScaleRangePercentilesd
from .labels import CheckCoveraged, ClassIndexd, LabelPresenced, LabelVolumed
from .load import LoadVolumed
from .lookup import IntensityLookupd
from .masks import StructureMasksd, mask_keys
from .overlapping_patches import RandOverlappingPatchesd
from .padded_crops import padded_crops_at
from .pixels import PixelFramed
from .points import AnatomicalOrigind, ForegroundPointsd, LabelPointsd
from .radiographs import DicomWindowd, GreyScaled, ResizeToCoverd
from .units import CheckHounsfieldd

__all__ = [
    "AnatomicalOrigind",
    "CheckCoveraged",
    "CheckHounsfieldd",
    "ClassIndexd",
    "ClassProbabilitiesd",
    "CropPositiond",
    "DicomWindowd",
    "FindingsVectord",
    "ForegroundPointsd",
    "GreyScaled",
    "HeatMapd",
    "IntensityLookupd",
    "LabelPointsd",
    "LabelPresenced",
    "LabelVolumed",
    "LoadVolumed",
    "PixelFramed",
    "RandBezierIntensity",
    "RandCoarseDropout",
    "RandCoarseShuffle",
    "RandGridViewsd",
    "RandOverlappingPatchesd",
    "RandPhysicalCropsd",
    "RandomViews",
    "ResizeToCoverd",
    "SaveHeatMapsd",
    "ScaleRangePercentilesd",
    "StructureMasksd",
    "block_mask",
    "crops_at",
    "mask_keys",
    "match_cells",
    "padded_crops_at",
    "permute_cells",
]
