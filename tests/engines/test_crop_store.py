"""A store that was built before a training is what the training looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image

from anatomy_ssl.__main__ import main
from anatomy_ssl.data.scan_store import ScanStore
from anatomy_ssl.engines.crop_store import build_crop_store
from tests.volumes import smooth_volume

BUNDLES = Path(__file__).parents[2] / "bundles"
CASES = {
    "isimed": (["isimed/configs/pretrain.yaml", "isimed/configs/paper.yaml"], "train#dataset"),
    "isimed, resampled": (["isimed/configs/pretrain.yaml", "isimed/configs/encoder_small.yaml"], "train#dataset"),
    "peac": (["peac/configs/pretrain.yaml", "peac/configs/demo.yaml"], "train#dataset"),
    "peac, volumes": (["peac/configs/pretrain.yaml", "peac/configs/pretrain_3d.yaml"], "train#dataset"),
    "alice": (["alice/configs/pretrain.yaml", "alice/configs/encoder_small.yaml"], "train#scans"),
    "alice, MR": (["alice/configs/pretrain.yaml", "alice/configs/pretrain_mr.yaml"], "train#scans"),
    "alice, embedding": (["alice/configs/pretrain_embedding.yaml"], "train#dataset"),
}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    for n in range(3):
        values = (smooth_volume((36, 34, 35), n) - 300).clip(-1024)
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([8.0, 8.0, 8.0, 1.0])), folder / f"p{n}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(3):
        values = smooth_volume((240, 230), n)
        Image.fromarray((values / 6).clip(0, 255).astype(np.uint8)).save(folder / f"p{n}.png")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_training_finds_what_was_built(
    case: str, volumes: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is prepared a second time, and the prepared items are those of a training without a store."""
    names, dataset = CASES[case]
    files = [str(BUNDLES / name) for name in names]
    scans = pictures if case == "peac" else volumes
    store, count, bad = build_crop_store(files, scans, tmp_path / "store", workers=0)
    assert count == 3 and not bad and len(list(store.folder.glob("*.safetensors"))) == 3
    parser = ConfigParser()
    parser.read_config(files)
    parser.update({"dataset_dir": str(scans), "output_dir": str(tmp_path), "device": "cpu"})
    plain = parser.get_parsed_content(dataset)
    monkeypatch.setattr(ScanStore, "put", lambda self, item: pytest.fail("it is prepared again"))
    parser.update({"crop_store": str(tmp_path / "store")})
    stored = parser.get_parsed_content(dataset)
    assert stored.cache_num == 0 and len(stored) == len(plain)
    for i in range(len(plain)):
        first, second = plain.prepared(i), stored.prepared(i)
        assert first.keys() == second.keys()
        whole = [
            np.asarray(i["image"].as_tensor() if hasattr(i["image"], "meta") else i["image"]) for i in (first, second)
        ]
        assert whole[0].dtype == whole[1].dtype and np.array_equal(*whole)


def test_the_commands(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: Any) -> int:
        monkeypatch.setattr("sys.argv", ["anatomy_ssl", *map(str, arguments)])
        return main()

    config, store = str(BUNDLES / "isimed/configs/pretrain.yaml"), str(tmp_path / "store")
    build: list[Any] = ["store", "build", "--datalist", volumes, "--output", store, "--config_file", config]
    assert run(*build) == 0 and run("store", "check", store) == 0
    said = capsys.readouterr().out
    assert "holds 3 of 3 scans" in said and "is sound" in said
    stored = next(Path(store).glob("scans-*/*.safetensors"))
    content = bytearray(stored.read_bytes())
    content[-9] ^= 255
    stored.write_bytes(content)
    assert run("store", "check", store) == 2
    assert f"{stored} is damaged" in capsys.readouterr().err
    for arguments, words in (
        ([*build, "--chanels", "2"], "no 'chanels'"),
        ([*build[:-1], str(BUNDLES / "isimed/configs/embed.yaml")], "has no crop_store"),
        ([*build[:-1], "absent.yaml"], "no config absent.yaml"),
        ([*build[:3], "nowhere", *build[4:]], "nowhere"),
        (["store", "check", str(tmp_path / "none")], "holds no prepared scans"),
    ):
        assert run(*arguments) == 2
        assert words in capsys.readouterr().err
