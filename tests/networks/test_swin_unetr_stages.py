"""SwinUNETRStages: MONAI's network, to the bit, and no more of it than is asked for."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import SwinUNETR

from anatomy_ssl.networks.swin_unetr_stages import SwinUNETRStages


def stages(dims: int = 3, **changes: bool | int) -> SwinUNETRStages:
    """A small one with two channels in and three out."""
    torch.manual_seed(0)
    return SwinUNETRStages(
        SwinUNETR(2, 3, feature_size=12, depths=(1, 1, 1, 1), window_size=4, spatial_dims=dims, **changes)
    )


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((64, 32, 32), {}),
        ((64, 96), {}),
        ((64, 64), {"normalize": False, "use_v2": True}),
        ((64, 64), {"use_checkpoint": True}),
    ],
)
def test_equals_monai_to_the_bit(size: tuple[int, ...], changes: dict[str, bool]) -> None:
    """Output and gradients."""
    net, x = stages(len(size), **changes), torch.randn(2, 2, *size)
    found = []
    for module in (net, net.network):
        net.zero_grad()
        output = module(x)
        output.square().mean().backward()
        found.append([output, *(p.grad for p in net.parameters())])
    assert len(found[0]) > 50
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_maps_have_the_widths_that_are_promised() -> None:
    net = stages(2)
    maps = net.encode(torch.randn(1, 2, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (2, 64, 96), (12, 32, 48), (24, 16, 24), (48, 8, 12), (96, 4, 6), (192, 2, 3)
    ]  # fmt: skip
    assert (net.num_features, net.decoder_features, net.stride) == (192, 96, 32)
    assert net.first_decoder(maps).shape == (1, 96, 4, 6)


def test_weights_go_to_monai_under_its_own_names() -> None:
    assert (
        stages(2).network.state_dict().keys()
        == SwinUNETR(2, 3, feature_size=12, depths=(1, 1, 1, 1), window_size=4, spatial_dims=2).state_dict().keys()
    )


@pytest.mark.parametrize("size", [(48, 64, 64), (32, 32, 32), (64, 64), (0, 64, 64)])
def test_other_sizes_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="3 axes of a multiple of 32 voxels each, at least one of them 64 or more"):
        stages().encode(torch.zeros(1, 2, *size))
