"""Where images come from: phantom cohorts, datalists, prepared scans in memory."""

from .datalist import load_datalist, split_patients, write_datalist
from .dataset import ScanDataset, subject_ids
from .embeddings import Embeddings
from .pairs import PairDataset
from .reading import BadImageError, SimpleITKReader, read_image
from .sampler import EpochSampler
from .splits import label_subset

__all__ = [
    "BadImageError",
    "Embeddings",
    "EpochSampler",
    "PairDataset",
    "ScanDataset",
    "SimpleITKReader",
    "label_subset",
    "load_datalist",
    "read_image",
    "split_patients",
    "subject_ids",
    "write_datalist",
]
