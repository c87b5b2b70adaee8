"""The zip holds what belongs in it, byte for byte the same each time; the index is not overwritten by other content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from anatomy_ssl.weights.files import file_hash
from anatomy_ssl.zoo import BundleError, pack, pack_bundle
from tests.zoo.conftest import network

URL = "https://example.org/zoo"
PUBLISHED = [
    "tiny/LICENSE",
    "tiny/configs/inference.json",
    "tiny/configs/metadata.json",
    "tiny/configs/train.json",
    "tiny/docs/README.md",
    "tiny/docs/data_license.txt",
    "tiny/models/model.pt",
    "tiny/models/pretrained/encoder.pt",
]


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return archive.namelist()


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both weight files are large ones."""
    monkeypatch.setattr(pack, "LARGE_FILE_BYTES", 2500)


def test_the_zip(bundle: Path, tmp_path: Path) -> None:
    """Named after the version, with the bundle's folder inside, and the bundle's bytes."""
    packed = pack_bundle(bundle, tmp_path / "out")
    assert packed.archive == tmp_path / "out" / "tiny_v0.2.0.zip"
    assert packed.large_files == []
    assert names(packed.archive) == PUBLISHED
    assert packed.sha256 == hashlib.sha256(packed.archive.read_bytes()).hexdigest()
    with zipfile.ZipFile(packed.archive) as archive:
        assert all(archive.read(name) == (bundle.parent / name).read_bytes() for name in PUBLISHED)


def test_equal_content_gives_equal_bytes(bundle: Path, tmp_path: Path) -> None:
    """Times, order of writing and permissions do not show; a changed byte does."""
    first = pack_bundle(bundle, tmp_path / "a").sha256
    other = tmp_path / "copy" / "tiny"
    for path in sorted((p for p in bundle.rglob("*") if p.is_file()), reverse=True):
        target = other / path.relative_to(bundle)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.utime(target, (10**9, 10**9))
        target.chmod(0o600)
    assert pack_bundle(other, tmp_path / "b").sha256 == first
    (other / "docs" / "README.md").write_text("Changed.")
    assert pack_bundle(other, tmp_path / "c").sha256 != first


def test_runs_caches_data_and_hidden_files_stay(bundle: Path, tmp_path: Path) -> None:
    """Scans of patients in the bundle's folder are never published."""
    stay = ["data/patient.nii.gz", "eval/pred.nii.gz", "runs/first/checkpoint.pt", "configs/.secret.json"]
    stay += [
        ".cache/x",
        "models/model_epoch=3.ts",
        "docs/scan.nii.gz",
        "configs/__pycache__/a.json",
        "mlruns/0/meta.yaml",
    ]
    for name in stay:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("{}")
    assert names(pack_bundle(bundle, tmp_path / "out").archive) == PUBLISHED


def test_the_index(bundle: Path, tmp_path: Path) -> None:
    """MONAI's form; entries of other bundles stay; packing again with an address only adds the address."""
    index = tmp_path / "model_info.json"
    index.write_text(json.dumps({"other_v1.0.0": {"checksum": "1", "source": "2"}}))
    packed = pack_bundle(bundle, tmp_path / "out", index=index)
    checksum = hashlib.sha1(packed.archive.read_bytes()).hexdigest()
    entry = {"checksum": checksum, "source": "tiny_v0.2.0.zip", "sha256": packed.sha256}
    other = {"other_v1.0.0": {"checksum": "1", "source": "2"}}
    assert json.loads(index.read_text()) == {**other, "tiny_v0.2.0": entry}
    pack_bundle(bundle, tmp_path / "out", url=f"{URL}/", index=index)
    entry["source"] = f"{URL}/tiny_v0.2.0.zip"
    assert json.loads(index.read_text()) == {**other, "tiny_v0.2.0": entry}
    pack_bundle(bundle, tmp_path / "out", index=index)
    assert json.loads(index.read_text())["tiny_v0.2.0"] == entry


def test_a_version_is_published_once(bundle: Path, edit: Callable[..., None], tmp_path: Path) -> None:
    """Other content under a known version is refused and leaves all files; a new version is added."""
    packed = pack_bundle(bundle, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    torch.save(network(2).state_dict(), bundle / "models" / "model.pt")
    with pytest.raises(ValueError, match=r"tiny_v0.2.0 is in .*model_info.json with other content: raise the version"):
        pack_bundle(bundle, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    edit("metadata", "version", "0.3.0")
    edit("metadata", "changelog#0.3.0", "other weights")
    pack_bundle(bundle, tmp_path / "out")
    assert list(json.loads(packed.index.read_text())) == ["tiny_v0.2.0", "tiny_v0.3.0"]


@pytest.mark.parametrize("place", [".", "docs"])
def test_a_bundle_does_not_hold_its_own_zip(place: str, bundle: Path) -> None:
    before = sorted(bundle.rglob("*"))
    with pytest.raises(ValueError, match="is in the bundle"):
        pack_bundle(bundle, bundle / place)
    assert sorted(bundle.rglob("*")) == before


@pytest.mark.parametrize("content", ["{", "[]"])
def test_an_index_that_cannot_be_read(content: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index.json is no"):
        pack_bundle(bundle, tmp_path / "out", index=tmp_path / "index.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("version", "changelog"), [("0.1.0", {"0.2.0": "", "0.1.0": ""}), ("0.3.0", {"0.2.0": ""})])
def test_a_version_that_is_not_the_newest(
    version: str, changelog: dict[str, str], bundle: Path, edit: Callable[..., None], tmp_path: Path
) -> None:
    edit("metadata", "version", version)
    edit("metadata", "changelog", changelog)
    with pytest.raises(BundleError, match=r"configs/metadata.json, (version|changelog)"):
        pack_bundle(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small_limit")
def test_large_files(bundle: Path, tmp_path: Path) -> None:
    """They lie beside the zip under names with the version; the zip says where, in MONAI's form."""
    packed = pack_bundle(bundle, tmp_path / "out", url=URL)
    beside = ["tiny_v0.2.0_models_model.pt", "tiny_v0.2.0_models_pretrained_encoder.pt"]
    assert packed.large_files == [tmp_path / "out" / name for name in beside]
    assert names(packed.archive) == sorted([*PUBLISHED[:6], "tiny/large_files.yml"])
    with zipfile.ZipFile(packed.archive) as archive:
        entries = yaml.safe_load(archive.read("tiny/large_files.yml"))["large_files"]
    assert [entry["path"] for entry in entries] == ["models/model.pt", "models/pretrained/encoder.pt"]
    for entry, name in zip(entries, beside, strict=True):
        assert entry["url"] == f"{URL}/{name}"
        assert (tmp_path / "out" / name).read_bytes() == (bundle / entry["path"]).read_bytes()
        assert (entry["hash_type"], entry["hash_val"]) == ("sha256", file_hash(bundle / entry["path"]))
    assert not (bundle / "large_files.yml").exists()


@pytest.mark.usefixtures("small_limit")
def test_large_files_need_an_address(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"models/model.pt, models/pretrained/encoder.pt: over .* MB; give .* --url"):
        pack_bundle(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["yml", "yaml", "json"])
@pytest.mark.parametrize("here", [True, False])
def test_a_list_of_large_files_is_respected(suffix: str, here: bool, bundle: Path, tmp_path: Path) -> None:
    """A file that has its address stays out of the zip, whether it is here or not; the list goes in as it is."""
    model = bundle / "models" / "model.pt"
    entry = {"path": "models/model.pt", "url": f"{URL}/m.pt", "hash_val": file_hash(model, "md5"), "hash_type": "md5"}
    listed = bundle / f"large_files.{suffix}"
    listed.write_text(json.dumps({"large_files": [entry]}))
    if not here:
        model.unlink()
    packed = pack_bundle(bundle, tmp_path / "out")
    expected = [name for name in PUBLISHED if name != "tiny/models/model.pt"]
    assert names(packed.archive) == sorted([*expected, f"tiny/{listed.name}"])
    with zipfile.ZipFile(packed.archive) as archive:
        assert archive.read(f"tiny/{listed.name}") == listed.read_bytes()


def test_a_new_large_file_joins_the_list(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One list in the zip, under the name that MONAI reads first, with the old entry and the new one."""
    entry = {"path": "models/model.pt", "url": f"{URL}/m.pt", "hash_type": "sha256"}
    entry["hash_val"] = file_hash(bundle / "models" / "model.pt")
    (bundle / "large_files.json").write_text(json.dumps({"large_files": [entry]}))
    monkeypatch.setattr(pack, "LARGE_FILE_BYTES", 2500)
    packed = pack_bundle(bundle, tmp_path / "out", url=URL)
    with zipfile.ZipFile(packed.archive) as archive:
        assert [name for name in archive.namelist() if "large_files" in name] == ["tiny/large_files.yml"]
        entries = yaml.safe_load(archive.read("tiny/large_files.yml"))["large_files"]
    assert entries[0] == entry
    assert [e["path"] for e in entries] == ["models/model.pt", "models/pretrained/encoder.pt"]


ENTRY = {"path": "models/big.pt", "url": URL, "hash_val": "0" * 32, "hash_type": "md5"}
LIST_DEFECTS = {
    "is no list under the key large_files": {"files": []},
    "must be a list of entries": {"large_files": ["models/big.pt"]},
    "large_files, entry 1: lacks hash_val": {"large_files": [{**ENTRY, "hash_val": ""}]},
    "large_files, entry 1, path: ../big.pt leaves the bundle": {"large_files": [{**ENTRY, "path": "../big.pt"}]},
    "large_files, entry 2, hash_type: crc is unknown": {"large_files": [ENTRY, {**ENTRY, "hash_type": "crc"}]},
    "large_files, entry 1, hash_val: is not that of docs": {"large_files": [{**ENTRY, "path": "docs/README.md"}]},
}


@pytest.mark.parametrize("text", LIST_DEFECTS)
def test_a_bad_list_of_large_files(text: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / "large_files.yml").write_text(json.dumps(LIST_DEFECTS[text]))
    with pytest.raises(BundleError) as raised:
        pack_bundle(bundle, tmp_path / "out")
    (problem,) = raised.value.problems
    assert text in problem
    assert not (tmp_path / "out").exists()


def test_two_lists_of_large_files(bundle: Path) -> None:
    for suffix in ("yml", "json"):
        (bundle / f"large_files.{suffix}").write_text(json.dumps({"large_files": []}))
    with pytest.raises(BundleError, match=r"large_files.yml and large_files.json: .* keep one"):
        pack_bundle(bundle, bundle.parent / "out")


def test_the_command(
    bundle: Path, tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints what it wrote and the hash."""
    out = tmp_path / "out"
    assert call("zoo", "pack", bundle, "--output", out, "--url", URL) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [f"wrote {out / 'tiny_v0.2.0.zip'}", f"sha256 {file_hash(out / 'tiny_v0.2.0.zip')}"]
    assert lines == [*expected, f"wrote {out / 'model_info.json'}"]
    (bundle / "LICENSE").unlink()
    assert call("zoo", "pack", bundle, "--output", tmp_path / "none") == 2
    assert "error: LICENSE: the file is missing" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
