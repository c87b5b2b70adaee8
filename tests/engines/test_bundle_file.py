"""A config of the bundle that is being run is found wherever the run was started from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from anatomy_ssl.engines.bundle_file import bundle_config


def test_found_by_root_path_or_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bundle in ("first", "second"):
        (tmp_path / bundle / "configs").mkdir(parents=True)
        (tmp_path / bundle / "configs" / "only_here.yaml").write_text("")
    first, second = (str(tmp_path / bundle / "configs" / "only_here.yaml") for bundle in ("first", "second"))
    monkeypatch.setattr(sys, "path", [sys.path[0], str(tmp_path / "second"), *sys.path[1:]])
    assert bundle_config("only_here.yaml", str(tmp_path / "first")) == first
    assert bundle_config("only_here.yaml") == second
    assert bundle_config(first, str(tmp_path / "second")) == first
    with pytest.raises(FileNotFoundError, match=r"no config absent\.yaml .*--bundle_root"):
        bundle_config("absent.yaml")
