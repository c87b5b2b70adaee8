"""Volumes are embedded by the recipe that lies beside the weights; what units they are in may be said anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.matching.embedder import VolumeEmbedder
from tests.matching.networks import small_recipe, write_embedding
from tests.volumes import smooth_volume


def test_unsigned_ct_is_shifted_where_that_is_asked_for(tmp_path: Path, write_nifti: Callable[..., str]) -> None:
    """With weights whose training refused such volumes; a volume in HU is embedded alike either way."""
    recipe = small_recipe(window=(-1000.0, 1000.0), percentiles=None, units="raise")
    weights = write_embedding(tmp_path / "embedding.pt", recipe=recipe)
    blob = smooth_volume((24, 20, 22)).astype(np.int16)
    hu = np.where(blob > 500, 40 + (blob - 1000) // 10, -1000).astype(np.int16)
    items = [{"image": write_nifti(f"{name}.nii.gz", v)} for name, v in (("hu", hu), ("unsigned", hu + 1024))]
    plain, told = VolumeEmbedder(weights), VolumeEmbedder(weights, units="shift")
    with pytest.raises(BadImageError, match="units shift"):
        plain(items[1])
    assert np.array_equal(told(items[1]).fine, plain(items[0]).fine)
    assert np.array_equal(told(items[0]).fine, plain(items[0]).fine)
    assert told.model == plain.model
