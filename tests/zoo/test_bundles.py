"""Every bundle of this repository can be published, downloaded and loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import monai.bundle
import pytest
import torch

from anatomy_ssl.zoo import find_problems, pack_bundle
from anatomy_ssl.zoo.files import large_file_entries

BUNDLES = sorted(path for path in (Path(__file__).parents[2] / "bundles").iterdir() if (path / "configs").is_dir())


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def published(request: pytest.FixtureRequest) -> Path:
    """A bundle with weights."""
    folder: Path = request.param
    listed = {entry.get("path") for entry in large_file_entries(folder)}
    if not (folder / "models" / "model.pt").is_file() and "models/model.pt" not in listed:
        pytest.skip(f"bundles/{folder.name} has no models/model.pt yet")
    return folder


def test_verification(published: Path) -> None:
    assert find_problems(published) == []


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_packed_and_loaded(kind: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the zip, in another folder, tensor by tensor."""
    model = published / "models" / "model.pt"
    if not model.is_file():
        pytest.skip(f"models/model.pt of bundles/{published.name} is only listed in its large files")
    monkeypatch.chdir(tmp_path)
    packed = pack_bundle(published, tmp_path / "out", url="https://example.org/zoo")
    shutil.unpack_archive(packed.archive, tmp_path)
    folder = tmp_path / published.name
    (folder / "models" / "pretrained").mkdir(parents=True, exist_ok=True)
    for path in (model, *(published / "models" / "pretrained").glob("*.pt")):  # large ones lie beside the zip
        target = folder / path.relative_to(published)
        if not target.exists():
            shutil.copyfile(path, target)
    root = {"bundle_root": str(folder)}
    options = {"workflow_type": kind, "bundle_dir": tmp_path, "args_file": root, "device": "cpu"}
    loaded = monai.bundle.load(published.name, **options).state_dict()
    state = torch.load(model, weights_only=True)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name].to(loaded[name].dtype)) for name in state)
