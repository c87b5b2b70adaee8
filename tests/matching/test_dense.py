"""A whole volume is embedded by windows as it would be at once, in any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from anatomy_ssl.matching import embed_volume
from anatomy_ssl.networks import AnatomicalEmbedding

AFFINE = torch.tensor([[3.0, 0, 0, -20], [0, 3, 0, 5], [0, 0, 3, 8], [0, 0, 0, 1]], dtype=torch.float64)


def network(spatial_dims: int = 3) -> AnatomicalEmbedding:
    torch.manual_seed(0)
    return AnatomicalEmbedding(spatial_dims, 1, 8, [8, 8], [1, 1], 1, norm="batch").eval()


def volume(*size: int) -> MetaTensor:
    return MetaTensor(torch.randn(1, *size, generator=torch.Generator().manual_seed(0)), affine=AFFINE)


def test_one_window_is_the_network_itself() -> None:
    image = volume(16, 12, 8)
    found = embed_volume(network(), image, (16, 16, 16), subject="p", source="f")
    with torch.no_grad():
        expected = network()(image.as_tensor()[None])
    for name in ("fine", "coarse"):
        rows = getattr(found, name)
        assert rows.dtype == np.float16
        assert np.allclose(rows, expected[name][0].movedim(0, -1).numpy(), atol=2e-3)
    assert (found.fine_stride, found.coarse_stride, found.shape) == (2, 4, (16, 12, 8))
    assert (found.subject, found.source) == ("p", "f") and np.allclose(found.affine, AFFINE)


def test_windows_agree_with_the_whole_where_they_see_enough() -> None:
    """Network and windows are alike by shifts of whole cells; the middle of each window rules."""
    image = volume(96, 16, 16)
    whole = embed_volume(network(), image, (96, 16, 16))
    parts = embed_volume(network(), image, (48, 16, 16), overlap=0.75)
    cosine = (whole.fine.astype(np.float32) * parts.fine).sum(axis=-1)
    assert cosine[12:36].min() > 0.98 and cosine.mean() > 0.98


@pytest.mark.parametrize("size", [(15, 10, 9), (4, 33, 6), (1, 8, 8)])
def test_any_size_is_embedded(size: tuple[int, ...]) -> None:
    """Entries lie at stride * index, within the volume."""
    found = embed_volume(network(), volume(*size), (16, 16, 16))
    assert found.fine.shape == (*[-(-n // 2) for n in size], 8)
    assert found.coarse.shape == (*[-(-n // 4) for n in size], 8)
    assert np.allclose(np.linalg.norm(found.fine.astype(np.float32), axis=-1), 1, atol=2e-3)


def test_images_of_two_axes() -> None:
    image = MetaTensor(torch.randn(1, 20, 13), affine=torch.eye(4, dtype=torch.float64))
    found = embed_volume(network(2), image, (16, 16))
    assert found.fine.shape == (10, 7, 8) and found.affine.shape == (3, 3)
