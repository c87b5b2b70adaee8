"""The anatomical embedding: unit vectors on grids whose places are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anatomy_ssl.networks import AnatomicalEmbedding

SMALL: dict[str, Any] = {"features": 8, "channels": [8, 8, 16], "layers": [1, 1, 1], "coarse_level": 2}


def network(spatial_dims: int = 3, **changes: Any) -> AnatomicalEmbedding:
    torch.manual_seed(0)
    return AnatomicalEmbedding(spatial_dims, **{**SMALL, **changes}).eval()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_maps_have_their_strides_and_unit_vectors(spatial_dims: int, norm: str) -> None:
    net = network(spatial_dims, norm=norm)
    size = (16, 24, 8)[:spatial_dims]
    found = net(torch.randn(2, 1, *size))
    assert (net.fine_stride, net.coarse_stride) == (2, 8)
    assert found["fine"].shape == (2, 8, *[n // 2 for n in size])
    assert found["coarse"].shape == (2, 8, *[n // 8 for n in size])
    for m in found.values():
        assert torch.allclose(m.norm(dim=1), torch.ones_like(m[:, 0]), atol=1e-5)


@pytest.mark.parametrize(("name", "stride"), [("fine", 2), ("coarse", 8)])
def test_an_entry_looks_at_both_sides_of_its_voxel_alike(name: str, stride: int) -> None:
    """The receptive field of an entry is centred on stride * index: that is where matching takes it to lie."""
    net = network(1 + 1, norm="batch")
    x = torch.randn(1, 1, 160, 16, requires_grad=True)
    index = 80 // stride
    net(x)[name][0, :, index, 1].sum().backward()
    assert x.grad is not None
    seen = (x.grad[0, 0].abs().sum(dim=1) > 0).nonzero()[:, 0]
    assert seen[0] > 0 and seen[-1] < 159
    # what comes from above reaches down by nearest neighbours, to the upper side by less than one coarse cell
    assert abs(int(seen[0] + seen[-1]) / 2 - stride * index) <= (0 if name == "coarse" else 4)


def test_moving_the_image_by_coarse_cells_moves_the_maps() -> None:
    """Away from the borders; needs a normalisation that does not look at the whole image."""
    net = network(2, norm="batch")
    x = torch.randn(1, 1, 256, 16)
    here, moved = net(x), net(x.roll(16, dims=2))
    for name, stride in (("fine", 2), ("coarse", 8)):
        inside = slice(96 // stride, 160 // stride)
        there = slice(112 // stride, 176 // stride)
        assert torch.allclose(here[name][:, :, inside], moved[name][:, :, there], atol=1e-5)


def test_every_weight_is_trained() -> None:
    """Distributed training refuses weights that get no gradient."""
    net = network().train()
    found = net(torch.randn(2, 1, 16, 16, 16))
    (found["fine"][:, 0].sum() + found["coarse"][:, 0].sum()).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="pad them"):
        network()(torch.zeros(1, 1, 16, 16, 20))
    with pytest.raises(ValueError, match="coarse_level"):
        network(coarse_level=3)
    with pytest.raises(ValueError, match="norm"):
        network(norm="layer")
