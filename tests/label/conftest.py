"""Phantoms for all servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SUBJECTS = 6


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans and radiographs, drawn once."""
    folder = tmp_path_factory.mktemp("phantoms")
    command = [sys.executable, "-m", "anatomy_ssl", "phantom", "--output", str(folder), "--subjects", str(SUBJECTS)]
    subprocess.run(command, check=True, capture_output=True)
    return folder
