"""A phantom cohort of coarse voxels, written once, and a network trained on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from anatomy_ssl.data.phantom import write_phantom_cohort
from tests.bundles.runs import run


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of eight phantoms with datalist.json."""
    folder = tmp_path_factory.mktemp("phantoms")
    spacings = ((9.0, 9.0, 9.0), (8.0, 8.0, 12.0))
    write_phantom_cohort(folder, subjects=8, seed=0, spacings=spacings, radiographs=False, progress=False)
    return folder


@pytest.fixture(scope="session")
def encoder(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder.pt of two epochs; checkpoint.pt lies beside it."""
    return run("training", tmp_path_factory.mktemp("trained"), cohort, epochs=2) / "encoder.pt"
