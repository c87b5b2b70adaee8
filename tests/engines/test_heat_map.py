"""Class activation maps: exact, of all classes, of overlapping crops."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.visualize import CAM
from torch import nn

from anatomy_ssl.engines.heat_map import ClassActivationInferer
from anatomy_ssl.engines.ten_crop import TenCropInferer
from anatomy_ssl.networks import EncoderWithClassifier, PooledEncoder, SwinEncoder


def classifier(dims: int = 2) -> nn.Module:
    """A small Swin with cells of 8 and three classes."""
    torch.manual_seed(0)
    encoder = SwinEncoder(dims, 1, embed_dim=6, depths=[1, 1], num_heads=[1, 2], window_size=2, patch_size=4)
    network = EncoderWithClassifier(PooledEncoder(encoder), encoder.num_features, num_classes=3)
    nn.init.normal_(network.head.weight)
    return network.eval()


@torch.no_grad()
def test_the_map_is_monais_class_activation_map() -> None:
    """Of each class, which MONAI computes one at a time."""
    network, x = classifier(), torch.randn(2, 1, 32, 24)
    found = ClassActivationInferer(roi_size=(32, 24))(x, network)["map"]
    cam = CAM(network, "encoder.backbone", "head", postprocessing=nn.Identity())
    for k in range(3):
        expected = torch.cat([cam(image[None], class_idx=[k]) for image in x])
        torch.testing.assert_close(found[:, k : k + 1], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("options", [{}, {"corners": False}, {"mirror": True}, {"exclusive": True}])
def test_logits_are_those_of_the_crops(dims: int, options: dict[str, bool]) -> None:
    """And the image's metadata do not get in the way; hooks are gone afterwards."""
    network, x = classifier(dims), torch.randn(2, 1, *(24, 24, 24)[:dims])
    roi = (16, 16, 16)[:dims]
    found = ClassActivationInferer(roi, **options)(MetaTensor(x), network)
    torch.testing.assert_close(found["logits"], TenCropInferer(roi, **options)(x, network))
    assert found["map"].shape == (2, 3, *x.shape[2:])
    seen = not found["map"].isnan().any()
    assert seen == options.get("corners", True)
    assert not network.encoder.backbone._forward_hooks


class Local(nn.Module):
    """A feature map that depends on nothing but the place: its own pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mean and negative mean of cells of 4."""
        mean = nn.functional.avg_pool2d(x, 4)
        return torch.cat([mean, -mean], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("mirror", [False, True])
def test_crops_are_put_back_where_they_were_cut(mirror: bool) -> None:
    """Of a ramp, the map is the ramp."""
    network = EncoderWithClassifier(PooledEncoder(Local()), 2, 1)
    network.head.weight.copy_(torch.tensor([[1.0, 0.0]]))
    network.head.bias.zero_()
    row, column = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    x = (3 * row + column)[None, None]
    found = ClassActivationInferer((32, 32), mirror=mirror)(x, network)["map"]
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(found[inside], x[inside], atol=6.5, rtol=0.0)  # half a cell, at the crops' edges
    middle = (..., slice(20, 28), slice(16, 24))
    torch.testing.assert_close(found[middle], x[middle], atol=0.5, rtol=0.0)


@torch.no_grad()
def test_what_is_no_class_activation_map_is_refused() -> None:
    """Another name, or a network whose output is not the mean of the map."""
    network, x = classifier(), torch.randn(1, 1, 16, 16)
    with pytest.raises(ValueError, match=r"no part 'encoder\.stem'"):
        ClassActivationInferer((16, 16), features="encoder.stem")(x, network)
    with pytest.raises(ValueError, match="no part 'head'"):
        ClassActivationInferer((16, 16), features="backbone")(x, network.encoder)
    network.head = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(ValueError, match="is not the mean over cells"):
        ClassActivationInferer((16, 16))(x, network)
