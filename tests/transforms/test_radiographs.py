"""Radiographs of any channels and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Transposed
from PIL import Image

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms import LoadVolumed
from anatomy_ssl.transforms.radiographs import DicomWindowd, GreyScaled, ResizeToCoverd


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_files_of_every_kind_become_one_grey_channel(tmp_path: Path, mode: str) -> None:
    """As Pillow converts, whatever the alpha."""
    values = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    picture = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values).convert(mode)
    if mode == "RGB":
        picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8))
        values = np.asarray(picture.convert("L"))
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(255 - values))
    picture.save(tmp_path / "a.png")
    loaded = LoadVolumed("image", spatial_dims=2, channels=None)({"image": str(tmp_path / "a.png")})
    grey = GreyScaled("image")(loaded)["image"]
    assert grey.shape == (1, 9, 12)
    np.testing.assert_allclose(grey[0].T, values, atol=0.51)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
@pytest.mark.parametrize("size", [(16, 16), (40, 40), (20, 30)])
def test_integers_become_what_floats_become(channels: int, dtype: torch.dtype, size: tuple[int, int]) -> None:
    """Grey, turned and resized; one grey channel stays as it is stored."""
    values = torch.randint(0, 256, (channels, 30, 20), generator=torch.Generator().manual_seed(0))
    steps = Compose([GreyScaled("image"), Transposed("image", [0, 2, 1]), ResizeToCoverd("image", size)])
    whole, floats = (MetaTensor(values.to(t)) for t in (dtype, torch.float32))
    assert GreyScaled("image")({"image": whole})["image"].dtype == (dtype if channels < 3 else torch.float32)
    found, expected = (steps({"image": image})["image"].as_tensor() for image in (whole, floats))
    assert torch.equal(found.float(), expected)


def test_too_many_channels() -> None:
    with pytest.raises(BadImageError, match=r"a\.tif: has 5 channels"):
        GreyScaled("image")({"image": torch.zeros(5, 3, 3), "source": "a.tif"})


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (16, 16), (7, 9), (33, 16), (100, 17), (20, 24, 28)])
def test_the_size_is_covered_with_proportions_kept(shape: tuple[int, ...]) -> None:
    """A ramp stays a ramp of the scaled slope about the middle, on every axis."""
    size = (16, 16, 16)[: len(shape)]
    scale = max(s / n for s, n in zip(size, shape))
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape], indexing="ij")
    image = MetaTensor(torch.stack(axes), affine=torch.eye(4))
    found = ResizeToCoverd("image", size)({"image": image})["image"]
    assert found.shape == (len(shape), *size)
    for axis in range(len(shape)):
        line = found[axis].movedim(axis, 0).flatten(1).mean(dim=1)[4:12]
        middle = torch.arange(4, 12) - 7.5
        torch.testing.assert_close(line.as_tensor(), (middle / scale).float(), atol=0.6 / min(1.0, scale), rtol=0.06)


def test_images_too_small_for_the_size_are_refused() -> None:
    resize = ResizeToCoverd("image", (16, 16), max_enlargement=4)
    assert resize({"image": MetaTensor(torch.rand(1, 4, 9)), "source": "a.png"})["image"].shape == (1, 16, 16)
    with pytest.raises(BadImageError, match=r"a\.png: has \(3, 9\) pixels and would be enlarged 5\.3 times"):
        resize({"image": MetaTensor(torch.rand(1, 3, 9)), "source": "a.png"})


def test_equal_size_changes_nothing() -> None:
    image = MetaTensor(torch.rand(1, 16, 12))
    assert torch.equal(ResizeToCoverd("image", (16, 12))({"image": image})["image"], image)


def dicom(path: Path, values: np.ndarray, photometric: str = "MONOCHROME2", **tags: str) -> str:
    """Write a radiograph; `(rows, columns)` int16."""
    image = sitk.GetImageFromArray(values)
    for tag, value in {"0008|0060": "DX", **tags}.items():
        image.SetMetaData(tag, value)
    sitk.WriteImage(image, str(path))
    # SimpleITK writes MONOCHROME2 alone
    path.write_bytes(path.read_bytes().replace(b"MONOCHROME2 ", photometric.ljust(12).encode()))
    return str(path)


def add_rescale(path: Path) -> None:
    """Write intercept -100 and slope 2 behind the window's width, as SimpleITK does for no integers."""
    content = path.read_bytes()
    start = content.index(b"\x28\x00\x51\x10")
    end = start + 8 + int.from_bytes(content[start + 4 : start + 8], "little")
    added = b"\x28\x00\x52\x10\x04\x00\x00\x00-100" + b"\x28\x00\x53\x10\x02\x00\x00\x002 "
    path.write_bytes(content[:end] + added + content[end:])


def shown(path: str) -> np.ndarray:
    """`(rows, columns)` as the recipe shows it."""
    data = LoadVolumed("image", spatial_dims=2, channels=None)({"image": path})
    return DicomWindowd("image")(data)["image"][0].T.numpy()


VALUES = np.random.default_rng(0).integers(0, 4000, (7, 5)).astype(np.int16)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("rescaled", [False, True])
def test_window_of_the_header_in_both_polarities(tmp_path: Path, dtype: type, rescaled: bool) -> None:
    """Center 1,000 and width 501 show 749.5 to 1,249.5; of several windows the first. Air is dark in all."""
    tags = {"0028|1050": "1000\\2000", "0028|1051": "501\\9000"}
    files = [dicom(tmp_path / f"{p}.dcm", VALUES.astype(dtype), p, **tags) for p in ("MONOCHROME2", "MONOCHROME1")]
    values = VALUES.astype(float)
    if rescaled:
        values = VALUES * 2.0 - 100
        for file in files:
            add_rescale(Path(file))
    found = shown(files[0])
    np.testing.assert_allclose(found, values.clip(749.5, 1249.5))
    white_is_low = shown(files[1])
    np.testing.assert_allclose(white_is_low - white_is_low.min(), 500 - (found - 749.5))


def test_windows_of_integers_are_those_of_floats(tmp_path: Path) -> None:
    """Whose ends may lie between integers."""
    path = dicom(tmp_path / "a.dcm", VALUES, **{"0028|1050": "1000", "0028|1051": "501"})
    whole = LoadVolumed("image", spatial_dims=2, channels=None, keep_integers=True)({"image": path})
    assert whole["image"].dtype == torch.int16
    np.testing.assert_array_equal(DicomWindowd("image")(whole)["image"][0].T.numpy(), shown(path))


def test_without_a_window_air_is_dark_in_both_polarities(tmp_path: Path) -> None:
    plain = shown(dicom(tmp_path / "a.dcm", VALUES))
    np.testing.assert_array_equal(plain, VALUES)
    turned = shown(dicom(tmp_path / "b.dcm", VALUES, "MONOCHROME1"))
    np.testing.assert_array_equal(turned - turned.min(), plain.max() - plain)


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    Image.fromarray(VALUES.astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(shown(str(tmp_path / "a.png")), VALUES.astype(np.uint8))


def test_dicom_without_pixels_is_named(tmp_path: Path) -> None:
    path = Path(dicom(tmp_path / "a.dcm", VALUES))
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\xe0\x7f\x10\x00")])
    with pytest.raises(BadImageError, match=r"a\.dcm: cannot be read"):
        shown(str(path))
