"""What a file tells of its pixels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.transforms import Compose, Transposed

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms import LoadVolumed, PixelFramed


def framed(path: Path, **entries: Any) -> dict[str, Any]:
    steps = [LoadVolumed("image", spatial_dims=2, channels=None), Transposed("image", [0, 2, 1]), PixelFramed("image")]
    return Compose(steps)({"image": str(path), **entries})


def write(folder: Path, kind: str) -> Path:
    """An image of 10 rows and 14 columns, with rows 0.4 mm and columns 0.7 mm apart where the format can say it."""
    values = np.arange(140).reshape(10, 14)
    path = folder / f"a.{kind}"
    if kind == "nii.gz":
        nib.save(nib.Nifti1Image(values.T.astype(np.float32), np.diag([0.7, 0.4, 1, 1])), path)
        return path
    image = sitk.GetImageFromArray(values.astype(np.uint8 if kind == "png" else np.uint16))
    image.SetSpacing((0.7, 0.4))
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("kind", ["png", "nii.gz", "dcm", "mha"])
def test_spacing_is_of_rows_and_columns(tmp_path: Path, kind: str) -> None:
    d = framed(write(tmp_path, kind))
    assert d["original_size"].tolist() == [10, 14]
    torch.testing.assert_close(torch.as_tensor(d["image"].affine), torch.eye(3, dtype=torch.float64))
    expected = [np.nan, np.nan] if kind == "png" else [0.4, 0.7]
    np.testing.assert_allclose(d["pixel_to_mm"].diagonal()[:2], expected, rtol=1e-5)


def test_the_items_spacing_counts_first(tmp_path: Path) -> None:
    d = framed(write(tmp_path, "mha"), spacing=[0.1, 0.2])
    assert d["pixel_to_mm"].diagonal().tolist() == [0.1, 0.2, 1.0]


@pytest.mark.parametrize("spacing", [[0.1], [0.1, -1], [0.1, float("nan")]])
def test_wrong_spacing_is_refused(tmp_path: Path, spacing: list[float]) -> None:
    with pytest.raises(RuntimeError) as error:
        framed(write(tmp_path, "png"), spacing=spacing)
    cause = error.value.__cause__
    assert isinstance(cause, BadImageError) and re.search(r"a\.png: its spacing .* is not 2 positive", str(cause))
