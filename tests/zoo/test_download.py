"""A packed bundle, downloaded from a server, gives the network with the pretrained weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import pytest
import torch
from torch import nn

from anatomy_ssl.zoo import pack, pack_bundle
from tests.zoo.conftest import network


def same_weights(loaded: nn.Module, model: Path) -> None:
    """Every tensor of the network is the file's."""
    state = torch.load(model, weights_only=True)
    own = loaded.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in state)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder for downloads, with the working directory somewhere else."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "downloads"


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("large", [True, False])
def test_download_and_load(
    kind: str, large: bool, bundle: Path, served: tuple[Path, str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of docs/zoo.md. A training network built from its encoder ends with the bundle's weights."""
    folder, url = served
    if large:
        monkeypatch.setattr(pack, "LARGE_FILE_BYTES", 2500)
    pack_bundle(bundle, folder, url=url)
    monai.bundle.download("tiny", url=f"{url}/tiny_v0.2.0.zip", bundle_dir=elsewhere, progress=False)
    assert (elsewhere / "tiny" / "models" / "model.pt").exists() is not large
    if large:
        monai.bundle.download_large_files(str(elsewhere / "tiny"))
    root = {"bundle_root": str(elsewhere / "tiny")}
    loaded = monai.bundle.load("tiny", workflow_type=kind, bundle_dir=elsewhere, args_file=root, device="cpu")
    same_weights(loaded, bundle / "models" / "model.pt")
    image = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(loaded.eval()(image), network(0).eval()(image))


def test_inference_needs_no_folder(bundle: Path, served: tuple[Path, str], elsewhere: Path) -> None:
    """Downloaded and loaded by one call, by the bundle's name and address."""
    pack_bundle(bundle, served[0], url=served[1])
    address = {"url": f"{served[1]}/tiny_v0.2.0.zip"}
    options = {"workflow_type": "inference", "bundle_dir": elsewhere, "args_file": address, "device": "cpu"}
    same_weights(monai.bundle.load("tiny", **options), bundle / "models" / "model.pt")


def test_a_damaged_large_file_is_refused(
    bundle: Path, served: tuple[Path, str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its hash, before it is used."""
    monkeypatch.setattr(pack, "LARGE_FILE_BYTES", 2500)
    packed = pack_bundle(bundle, served[0], url=served[1])
    packed.large_files[0].write_bytes(b"other")
    monai.bundle.download("tiny", url=f"{served[1]}/tiny_v0.2.0.zip", bundle_dir=elsewhere, progress=False)
    with pytest.raises((ValueError, RuntimeError), match=r"hash|check"):
        monai.bundle.download_large_files(str(elsewhere / "tiny"))


def test_monai_reads_the_index(bundle: Path, edit: Callable[..., None], tmp_path: Path, monkeypatch) -> None:
    """Names, versions and addresses, as from the index of the model zoo."""
    pack_bundle(bundle, tmp_path / "out", url="https://example.org/zoo")
    edit("metadata", "version", "0.3.0")
    edit("metadata", "changelog#0.3.0", "more")
    index = pack_bundle(bundle, tmp_path / "out", url="https://example.org/zoo").index
    assert json.loads(index.read_text())
    answer = SimpleNamespace(text=index.read_text(), raise_for_status=lambda: None)
    requests = pytest.importorskip("requests")
    monkeypatch.setattr(requests, "get", lambda *_, **__: answer)
    assert monai.bundle.get_all_bundles_list() == [("tiny", "0.3.0")]
    assert monai.bundle.get_bundle_versions("tiny")["all_versions"] == ["0.2.0", "0.3.0"]
    info = monai.bundle.get_bundle_info("tiny", "0.2.0")
    assert info["browser_download_url"] == "https://example.org/zoo/tiny_v0.2.0.zip"


def test_why_nested_weights_are_refused(bundle: Path, tmp_path: Path) -> None:
    """MONAI takes nothing from weights under a key, and returns a network that was not trained."""
    nested = tmp_path / "nested.pt"
    torch.save({"model": network(0).state_dict()}, nested)
    torch.manual_seed(5)
    loaded = monai.bundle.load(
        "tiny", workflow_type="inference", bundle_dir=bundle.parent, model_file=str(nested), device="cpu"
    )
    assert not torch.equal(loaded[0].weight, network(0)[0].weight)
    assert torch.equal(loaded[0].weight, network(5)[0].weight)


def test_a_training_network_without_its_folder(bundle: Path, elsewhere: Path) -> None:
    """It stops with the missing file's name, as docs/zoo.md says."""
    with pytest.raises(RuntimeError) as raised:
        monai.bundle.load("tiny", workflow_type="train", bundle_dir=bundle.parent, device="cpu")
    assert "models/pretrained/encoder.pt" in str(raised.value.__cause__)
    assert not elsewhere.exists()
