"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.volumes import smooth_volume

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """MONAI's bundles set up the root logger anew, with streams that end with the test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real scans; tests that need it are skipped where the variable is not set."""
    folder = os.environ.get("ANATOMY_SSL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ANATOMY_SSL_DATA does not point at a folder of real scans")
    return Path(folder)


@pytest.fixture
def write_nifti(tmp_path: Path):
    """Write a volume as NIfTI and return its path."""

    def write(name: str = "scan.nii.gz", data: np.ndarray | None = None, affine: np.ndarray | None = None) -> str:
        data = smooth_volume((24, 20, 28)) if data is None else data
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
        return str(path)

    return write
