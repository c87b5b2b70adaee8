"""The record of an embedding brings back its network and its preparation, which no storage orientation changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from anatomy_ssl.matching import EmbeddingRecipe
from tests.volumes import smooth_volume

SMALL = {"features": 8, "channels": [8, 8], "layers": [1, 1], "coarse_level": 1}


def test_a_record_is_json_and_brings_the_recipe_back() -> None:
    recipe = EmbeddingRecipe(SMALL, spacing=(3.0, 3.0, 4.0), window=(-300, 600), patch_size=(16, 16, 16))
    again = EmbeddingRecipe.from_record(json.loads(json.dumps(recipe.to_record())))
    assert again == recipe
    assert {k: v.shape for k, v in again.build().state_dict().items()} == {
        k: v.shape for k, v in recipe.build().state_dict().items()
    }


def test_preparation_is_the_same_for_all_storage_orientations(write_nifti: Callable[..., str]) -> None:
    """48 ways to store one volume: flips and transpositions of its axes."""
    recipe = EmbeddingRecipe(SMALL, spacing=(3.0, 3.0, 3.0), window=(-200, 800), patch_size=(8, 8, 8))
    affine = np.array([[2.0, 0, 0, -7], [0, 2.5, 0, 30], [0, 0, 3.5, 11], [0, 0, 0, 1]])
    image = nib.Nifti1Image(smooth_volume((14, 12, 10)), affine)
    prepare = Compose(recipe.preparation())
    expected = prepare({"image": write_nifti("a.nii.gz", np.asarray(image.dataobj), affine)})["image"]
    assert float(expected.min()) >= -1 and float(expected.max()) <= 1
    assert torch.allclose(torch.diag(expected.affine)[:3], torch.full((3,), 3.0, dtype=torch.float64))
    number = 0
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        stored = image.as_reoriented(np.array([[axis, flip] for axis, flip in zip(axes, flips)]))
        path = write_nifti("b.nii.gz", np.asarray(stored.dataobj), stored.affine)
        found = prepare({"image": path})["image"]
        assert torch.allclose(found.affine, expected.affine, atol=1e-4)
        assert torch.allclose(found.as_tensor(), expected.as_tensor(), atol=1e-4)
        number += 1
    assert number == 48


def test_radiographs_may_be_in_colour(tmp_path: Path) -> None:
    """As JPEG files often are: what all channels say alike is what one would say."""
    recipe = EmbeddingRecipe(
        SMALL, 2, spacing=None, image_size=(32, 32), window=None, percentiles=(0, 100), patch_size=(16, 16)
    )
    grey = np.random.default_rng(0).integers(0, 256, (40, 32), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "colour.png")
    prepare = Compose(recipe.preparation())
    found, expected = (prepare({"image": str(tmp_path / f"{name}.png")})["image"] for name in ("colour", "grey"))
    assert found.shape[0] == 1
    assert torch.allclose(found.as_tensor(), expected.as_tensor(), atol=1e-5)


@pytest.mark.parametrize("intensities", [{"window": None}, {"percentiles": (1, 99)}])
def test_one_kind_of_intensities_is_asked_for(intensities: dict) -> None:
    with pytest.raises(ValueError, match="give one of window"):
        EmbeddingRecipe(SMALL, **intensities)


def test_sizes_have_to_fit_the_axes() -> None:
    with pytest.raises(ValueError, match="2 axes"):
        EmbeddingRecipe(SMALL, spatial_dims=2)
    with pytest.raises(ValueError, match="no record of an anatomical embedding"):
        EmbeddingRecipe.from_record({"crop_size": 3})
