"""StructureMasksd: mask files and label maps as stacked masks on the image's grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms.load import LoadVolumed
from anatomy_ssl.transforms.masks import StructureMasksd, mask_keys

Image = pytest.importorskip("PIL.Image", reason="PNG and GIF need Pillow (pip install anatomy-ssl[figures])")

SHAPE = (8, 6)  # rows, columns
LUNG = np.zeros(SHAPE, bool)
LUNG[1:5, :3] = True
HEART = np.zeros(SHAPE, bool)
HEART[3:7, 2:4] = True  # over the lung


def item(folder: Path, **files: Any) -> dict[str, Any]:
    """An image and its masks, from arrays or Pillow's images."""
    files = {"image": np.arange(48, dtype=np.uint8).reshape(SHAPE), **files}
    paths = {}
    for key, values in files.items():
        picture = Image.fromarray(values) if isinstance(values, np.ndarray) else values
        paths[key] = str(folder / f"{key}.{'gif' if picture.mode == 'P' else 'png'}")
        picture.save(paths[key])
    return paths


def stacked(data: dict[str, Any], structures: Any) -> torch.Tensor:
    """The masks, rows before columns."""
    read = LoadVolumed("image", spatial_dims=2, channels=None)(data)
    return StructureMasksd("image", structures)(read)["label"].transpose(1, 2)


def same(masks: torch.Tensor, *expected: np.ndarray) -> bool:
    return masks.dtype == torch.uint8 and np.array_equal(masks.numpy(), np.stack(expected))


def test_masks_are_stacked_in_order_and_may_overlap(tmp_path: Path) -> None:
    data = item(tmp_path, left_lung=LUNG.astype(np.uint8) * 255, heart=HEART.astype(np.uint8))
    assert same(stacked(data, {"the heart": "heart", "the lung": "left_lung"}), HEART, LUNG)
    assert same(stacked(data, {"lung": "left_lung"}), LUNG)


def test_a_label_map_gives_the_same(tmp_path: Path) -> None:
    values = np.where(HEART, 7, np.where(LUNG, 2, 0)).astype(np.uint8)
    data = item(tmp_path, label=values, heart=HEART.astype(np.uint8))
    structures = {"lung": 2, "heart": [7, 9], "both": None, "file": "heart", "none": 5}
    assert same(stacked(data, structures), LUNG & ~HEART, HEART, LUNG | HEART, HEART, np.zeros(SHAPE, bool))


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA", "I;16"])
def test_pictures_of_any_mode(tmp_path: Path, mode: str) -> None:
    """Alpha is no colour: it is full where the mask is not."""
    if mode == "I;16":
        picture = Image.fromarray(LUNG.astype(np.uint16) * 4095)
    else:
        picture = Image.fromarray(LUNG.astype(np.uint8) * 255).convert(mode)
    assert same(stacked(item(tmp_path, lung=picture), {"lung": "lung"}), LUNG)


def test_masks_of_half_the_pixels_repeat_theirs(tmp_path: Path) -> None:
    """SCR's masks have 1024^2 pixels, JSRT's radiographs 2048^2."""
    image = np.zeros((16, 12), np.uint8)
    masks = stacked(item(tmp_path, image=image, lung=LUNG.astype(np.uint8)), {"lung": "lung"})
    assert same(masks, LUNG.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("shape", [(9, 6), (16, 12), (16, 6), (6, 8), (4, 4)])
def test_other_sizes_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    data = item(tmp_path, lung=np.zeros(shape, np.uint8))
    size = f"{shape[1]} x {shape[0]}"
    with pytest.raises(BadImageError, match=rf"lung.png: the mask of the lung has {size} pixels .*image.png 6 x 8"):
        stacked(data, {"lung": "lung"})


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    data = item(tmp_path, lung=LUNG.astype(np.uint8))
    with pytest.raises(BadImageError, match=r"image.png: the datalist gives no mask of the heart \('heart_mask'\)"):
        stacked(data, {"lung": "lung", "heart": "heart_mask"})
    with pytest.raises(BadImageError, match=r"image.png: the datalist gives no mask of the heart \('label'\)"):
        stacked(data, {"heart": 3})
    with pytest.raises(BadImageError, match=r"gone\.png: the file does not exist"):
        stacked({**data, "heart": str(tmp_path / "gone.png")}, {"heart": "heart"})


@pytest.mark.parametrize("values", [(0, 1, 2), (3, 4)])
def test_a_file_of_other_values_is_no_mask(tmp_path: Path, values: tuple[int, ...]) -> None:
    """A label map would count as one structure, an inverted mask as its background."""
    mask = np.resize(np.array(values, np.uint8), SHAPE)
    with pytest.raises(BadImageError, match=rf"lung.png: the mask of the lung holds {len(values)} values"):
        stacked(item(tmp_path, lung=mask), {"lung": "lung"})


@pytest.mark.parametrize("structures", [{}, None, "lung", {"lung": 1.5}, {"lung": True}])
def test_structures_that_mean_nothing_are_refused(structures: Any) -> None:
    with pytest.raises(ValueError, match=r"classes is|whole numbers"):
        StructureMasksd("image", structures)


def test_keys_that_hold_paths() -> None:
    assert mask_keys({"a": "left_lung", "b": 3, "c": None, "d": "heart"}) == ["left_lung", "label", "heart"]


def test_volumes_too(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    values = np.zeros((4, 5, 6), np.float32)
    values[1:3, 2, 3] = 2
    paths = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label")}
    for path in paths.values():
        nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    read = LoadVolumed("image", spatial_dims=3)(paths)
    masks = StructureMasksd("image", {"x": 2})(read)["label"]
    assert np.array_equal(masks[0].numpy(), values > 0)
