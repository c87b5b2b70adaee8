"""The upload gets a verified copy of what is published, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anatomy_ssl.zoo import BundleError, push, push_bundle


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of push_to_hf_hub, with the files that it would have uploaded; it writes into its folder like MONAI's."""
    seen: list[dict[str, Any]] = []

    def push_to_hf_hub(**options: Any) -> str:
        folder = Path(options.pop("bundle_dir")) / options["name"]
        (folder / "README.md").write_text("card")
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        seen.append({**options, "files": files})
        return f"https://huggingface.co/{options['repo']}"

    monkeypatch.setitem(sys.modules, "huggingface_hub", ModuleType("huggingface_hub"))
    monkeypatch.setattr(push, "push_to_hf_hub", push_to_hf_hub)
    return seen


def test_what_is_uploaded(bundle: Path, uploads: list[dict[str, Any]]) -> None:
    """Version tag and defaults of MONAI; scans stay here, the bundle's folder stays as it is."""
    (bundle / "data").mkdir()
    (bundle / "data" / "patient.nii.gz").touch()
    before = sorted(bundle.rglob("*"))
    assert push_bundle(bundle, "someone/tiny") == "https://huggingface.co/someone/tiny"
    (upload,) = uploads
    files = upload.pop("files")
    expected = {"repo": "someone/tiny", "name": "tiny", "token": None, "private": True, "version": "0.2.0"}
    assert upload == {**expected, "tag_as_latest_version": False}
    assert {"README.md", "models/model.pt", "models/pretrained/encoder.pt", "docs/README.md"} <= set(files)
    assert "data/patient.nii.gz" not in files
    assert sorted(bundle.rglob("*")) == before


def test_a_bundle_with_problems_is_not_uploaded(bundle: Path, uploads: list[dict[str, Any]]) -> None:
    (bundle / "LICENSE").unlink()
    with pytest.raises(BundleError, match="LICENSE"):
        push_bundle(bundle, "someone/tiny")
    assert not uploads


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "/tiny"])
def test_the_name_of_the_repository(repo: str, bundle: Path, uploads: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="must be OWNER/NAME"):
        push_bundle(bundle, repo)
    assert not uploads


def test_the_command(
    bundle: Path, call: Callable[..., int], uploads: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--repo", "someone/tiny", "--token", "hf_secret", "--private", "false", "--latest")
    assert call("zoo", "push", bundle, *options) == 0
    assert capsys.readouterr().out == "pushed to https://huggingface.co/someone/tiny\n"
    assert [uploads[0][key] for key in ("token", "private", "tag_as_latest_version")] == ["hf_secret", False, True]


def test_without_huggingface_hub(
    bundle: Path, call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert call("zoo", "push", bundle, "--repo", "someone/tiny") == 2
    assert capsys.readouterr().err == "error: zoo push needs huggingface_hub: pip install anatomy-ssl[hub]\n"
