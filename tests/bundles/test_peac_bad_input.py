"""PEAC on files as clinics have them: every kind of PNG trains alike, and what cannot be used is named or left out."""

from __future__ import annotations

import re
import shutil
import traceback
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from PIL import Image

from tests.bundles.test_peac import CONFIGS, train

KINDS = ("L", "RGB", "RGBA", "I;16")


def values(number: int) -> np.ndarray:
    """Soft shapes with some noise, `(rows, columns)` uint8."""
    random = np.random.default_rng(number)
    return (np.kron(random.random((6, 5)), np.ones((12, 12))) * 200 + random.random((72, 60)) * 40).astype(np.uint8)


def write(file: Path, number: int, kind: str = "L") -> None:
    """One PNG of a kind; 16 bit ones have 257 times the values."""
    if kind == "I;16":
        Image.fromarray(values(number).astype(np.uint16) * 257).save(file)
    else:
        Image.fromarray(values(number)).convert(kind).save(file)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six grey PNGs."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        write(folder / f"image_{number}.png", number)
    return folder


def spoil(folder: Path, how: str) -> str:
    """Put a bad file among the good; returns its name."""
    if how == "truncated":
        file = folder / "bad.png"
        content = (folder / "image_1.png").read_bytes()
        file.write_bytes(content[: len(content) // 2])
    elif how == "small":
        file = folder / "bad.png"
        Image.fromarray(values(1)[:9, :20]).save(file)
    else:
        file = folder / "bad.dcm"
        image = sitk.GetImageFromArray(values(1).astype(np.int16))
        image.SetMetaData("0008|0060", "DX")
        sitk.WriteImage(image, str(file))
        content = file.read_bytes()
        file.write_bytes(content[: content.rindex(b"\xe0\x7f\x10\x00")])
    return file.name


CAUSES = {
    "truncated": "cannot be read .* it may be truncated",
    "small": r"has \(9, 20\) pixels and would be enlarged .* leave it out, .* or raise max_enlargement",
    "no pixels": "cannot be read",
}


def items(folder: Path, pattern: str = "*") -> list[dict[str, str]]:
    """Every file, whether it can be read or not."""
    return [{"image": str(file), "subject": file.stem} for file in sorted(folder.glob(pattern))]


def test_files_of_every_kind_train_alike(tmp_path: Path) -> None:
    """The same grey values in one channel, three, four or 16 bit end in the same weights."""
    found = []
    for kind in KINDS:
        folder = tmp_path / kind.replace(";", "")
        folder.mkdir()
        for number in range(4):
            write(folder / f"image_{number}.png", number, kind)
        output = train(tmp_path / f"run_{folder.name}", folder, epochs=1, pictures=False)
        found.append(torch.load(output / "encoder.pt", weights_only=True)["model"])
    for kind, weights in zip(KINDS[1:], found[1:]):
        for name, value in found[0].items():
            torch.testing.assert_close(weights[name], value, atol=1e-3, rtol=1e-2, msg=f"{kind}: {name}")


def test_sixteen_bits_are_kept_where_they_are_wanted(tmp_path: Path) -> None:
    """Views with more levels than bytes have, a byte's step apart at most; the same from memory and from a store."""
    shades = np.add.outer(np.linspace(0, 30_000, 72), np.linspace(0, 20_000, 60)).astype(np.uint16)
    for number in range(3):
        Image.fromarray(shades + 500 * number).save(tmp_path / f"p{number}.png")
    views = {}
    for name, changes in {
        "bytes": {"bits": 8},
        "memory": {"bits": 16},
        "store": {"bits": 16, "crop_store": str(tmp_path / "store")},
    }.items():
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / "pretrain.yaml"), str(CONFIGS / "demo.yaml")])
        parser.update({"dataset_dir": str(tmp_path), "cell_size": 8, "validation_fraction": 0, **changes})
        batch = next(iter(DataLoader(parser.get_parsed_content("train#dataset"), batch_size=3)))
        torch.manual_seed(0)
        views[name] = parser.get_parsed_content("validate#prepare_batch")(batch)[0][1]
    assert torch.equal(views["memory"], views["store"])
    assert len(views["memory"].unique()) > 256 >= len(views["bytes"].unique())
    assert (views["memory"] - views["bytes"]).abs().max() <= 0.51 / 255 / 0.252 + 1e-4


@pytest.mark.parametrize("how", CAUSES)
def test_one_error_names_file_cause_and_remedy(images: Path, tmp_path: Path, how: str) -> None:
    name = spoil(images, how)
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, images, epochs=1, pictures=False, train_items=items(images))
    told = "".join(traceback.format_exception(error.value))
    assert re.search(rf"{re.escape(name)}: {CAUSES[how]}", told)
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_bad_images_are_skipped_and_listed(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for how in CAUSES:
        name = spoil(images, how)
        shutil.move(images / name, images / f"{how}_{name}")
    good = items(images, "image*")
    output = train(
        tmp_path, images, epochs=1, pictures=False, train_items=items(images), val_items=good, on_bad_image="skip"
    )
    printed = capsys.readouterr().out
    (listing,) = re.findall(r"3 of 9 images were skipped:((?:\n  \S.*)+)", printed)
    assert all(f"{how}_bad" in listing for how in CAUSES)
    assert (output / "encoder.pt").exists()
