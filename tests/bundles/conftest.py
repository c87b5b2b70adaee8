"""A phantom cohort of coarse voxels, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from anatomy_ssl.data.phantom import write_phantom_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of eight phantoms with datalist.json."""
    folder = tmp_path_factory.mktemp("phantoms")
    spacings = ((9.0, 9.0, 9.0), (8.0, 8.0, 12.0))
    write_phantom_cohort(folder, subjects=8, seed=0, spacings=spacings, radiographs=False, progress=False)
    return folder
