"""Resampling axis by axis is resampling at once, and reads no more than it needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from anatomy_ssl.transforms import resampling
from anatomy_ssl.transforms.resampling import resampled_crops, sample_volume, world_axes_grid

AFFINES = {
    "plain": np.diag([2.0, 1.5, 3.0, 1.0]),
    "flipped": np.diag([-2.0, 1.5, -3.0, 1.0]),
    "oblique": np.array([[1.9, -0.5, 0, 3], [0.6, 1.6, 0, 9], [0, 0, 3.0, -4], [0, 0, 0, 1]]),
    "rounded": np.array([[2.0, 1e-8, 0, 3], [0, 1.5, 1e-9, 9], [0, 0, 3.0, -4], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", AFFINES)
def test_crops_are_those_of_the_whole_volume(name: str, dims: int, mode: str) -> None:
    """Wherever they lie, also half and wholly outside, with samples closer and further apart than the voxels."""
    keep = [*range(dims), 3]
    affine = torch.from_numpy(AFFINES[name][np.ix_(keep, keep)])
    values = torch.from_numpy(np.random.default_rng(0).random((2, 11, 9, 8)[: dims + 1], dtype=np.float32))
    volume = MetaTensor(values, affine=affine)
    centres = torch.tensor([[5.2, 4.1, 3.7], [0.0, 8.0, 0.3], [10.9, -3.0, 7.0], [40.0, 4.0, 4.0]])[:, :dims].double()
    for spacing in ([0.7, 1.0, 1.1], [3.3, 2.0, 4.0]):
        found = resampled_crops(volume, centres, (6, 5, 4)[:dims], spacing[:dims], mode)
        grid = world_axes_grid(affine, centres, (6, 5, 4)[:dims], spacing[:dims])
        expected = sample_volume(values, grid, mode)
        assert found.shape == expected.shape
        same = (found - expected).abs() < 2e-5
        # a sample right between two voxels may go to either
        assert same.all() if mode == "bilinear" else same.float().mean() > 0.95


def test_only_the_box_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = resampling.read_boxes
    monkeypatch.setattr(resampling, "read_boxes", lambda v, s, size: sizes.append(list(size)) or plain(v, s, size))
    for name in ("plain", "oblique"):
        volume = MetaTensor(torch.zeros(1, 50, 60, 70), affine=torch.from_numpy(AFFINES[name]))
        resampled_crops(volume, torch.tensor([[20.0, 30.0, 40.0]]).double(), (6, 6, 6), (2.0, 2.0, 2.0))
    assert all(max(size) <= 12 for size in sizes) and len(sizes) == 2
