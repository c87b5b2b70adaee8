"""Every encoder gives one vector per crop, at every size, dimension and channel count that its architecture can."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNETR, DenseNet121, SegResNet, SegResNetDS, SwinUNETR, UNet, ViT, resnet18
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from anatomy_ssl.networks.encoders import PooledEncoder, SegResNetEncoder, UNetEncoder, call_encoder, with_group_norm

KINDS = ("densenet", "swin", "vit", "resnet", "segresnet", "segresnet_ds", "unet")
FEATURES = {
    "swin": 192,
    "vit": 24,
    "resnet": 32,
    "segresnet": 64,
    "segresnet_ds": 64,
    "unet": 16,
}  # of the small ones below


def small_densenet(dims: int = 3, channels: int = 1, **kwargs: object) -> DenseNet121:
    small = {"init_features": 8, "growth_rate": 8, "block_config": (1, 1, 1, 1)}
    return DenseNet121(spatial_dims=dims, in_channels=channels, out_channels=12, **small, **kwargs)


def small_backbone(kind: str, dims: int = 3, channels: int = 1, size: int = 32) -> nn.Module:
    if kind == "swin":
        stages = {"depths": [1] * 4, "num_heads": [1, 2, 4, 8]}
        return SwinTransformer(channels, 12, [4] * dims, [2] * dims, **stages, spatial_dims=dims)
    if kind == "vit":
        return ViT(channels, size, 8, hidden_size=24, mlp_dim=24, num_layers=2, num_heads=2, spatial_dims=dims)
    if kind == "resnet":
        return resnet18(spatial_dims=dims, n_input_channels=channels, feed_forward=False, widen_factor=1 / 16)
    if kind == "segresnet":
        return SegResNetEncoder(spatial_dims=dims, in_channels=channels, init_filters=8)
    if kind == "unet":
        return UNetEncoder(spatial_dims=dims, in_channels=channels, channels=[4, 8, 16], strides=[2, 2])
    return SegResEncoder(spatial_dims=dims, in_channels=channels, init_filters=8)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_one_vector_per_crop_and_a_gradient_for_every_parameter(kind: str, size: int, dims: int, channels: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, *[size] * dims)
    if kind == "densenet":
        encoder: nn.Module = small_densenet(dims, channels)
        if size == 16:
            with pytest.raises(
                ValueError, match=rf"DenseNet121 cannot take crops of shape \({channels}, 16, .*crop size"
            ):
                call_encoder(encoder, x)
            return
    else:
        encoder = PooledEncoder(small_backbone(kind, dims, channels, size), out_channels=12)
    z = encoder(x)
    assert z.shape == (2, 12)
    z.square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@pytest.mark.parametrize("kind", KINDS[1:])
def test_without_a_projection_the_features_are_the_backbones(kind: str) -> None:
    encoder = PooledEncoder(small_backbone(kind))
    assert encoder(torch.randn(2, 1, 32, 32, 32)).shape == (2, FEATURES[kind])
    assert all(name.startswith("backbone.") for name in encoder.state_dict())


def test_pooling_is_the_mean_over_space_of_the_last_stage_and_the_mean_token() -> None:
    x = torch.randn(2, 1, 32, 32, 32)
    swin, vit = small_backbone("swin").eval(), small_backbone("vit").eval()
    torch.testing.assert_close(PooledEncoder(swin)(x), swin(x)[-1].mean(dim=(2, 3, 4)))
    torch.testing.assert_close(PooledEncoder(vit)(x), vit(x)[0].mean(dim=1))


@pytest.mark.parametrize(
    ("kind", "target", "part"),
    [
        (
            "swin",
            lambda: SwinUNETR(1, 2, depths=[1] * 4, num_heads=[1, 2, 4, 8], window_size=4, feature_size=12),
            "swinViT",
        ),
        ("vit", lambda: UNETR(1, 2, 32, feature_size=4, hidden_size=24, mlp_dim=24, num_heads=2), "vit"),
        ("segresnet_ds", lambda: SegResNetDS(init_filters=8), "encoder"),
        ("segresnet", lambda: SegResNet(init_filters=8), ""),
        ("unet", lambda: UNet(3, 1, 2, channels=[4, 8, 16], strides=[2, 2]), ""),
    ],
)
def test_weight_names_are_those_of_the_segmentation_network(kind: str, target: object, part: str) -> None:
    """UNETR's ViT has patches of 16 and 12 layers, so names alone are compared for what ours has."""
    theirs = target().get_submodule(part).state_dict()
    ours = [name.removeprefix("backbone.") for name in PooledEncoder(small_backbone(kind)).state_dict()]
    assert ours
    assert set(ours) <= set(theirs)


@pytest.mark.parametrize("units", [0, 2])
def test_unet_encoder_is_unets_way_down(units: int) -> None:
    """The same weights and map at the bottom, nothing of the way up; also as TorchScript."""
    shape = {"spatial_dims": 2, "in_channels": 1, "channels": [4, 8, 16], "strides": [2, 2], "num_res_units": units}
    whole, encoder = UNet(**shape, out_channels=3).eval(), UNetEncoder(**shape).eval()
    missing, unexpected = encoder.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert all(".2." in name for name in unexpected)
    x = torch.randn(2, 1, 16, 16)
    down = whole.model[0](x)
    expected = whole.model[1].submodule[1].submodule(whole.model[1].submodule[0](down))
    assert expected.shape == (2, 16, 4, 4)
    torch.testing.assert_close(encoder(x), expected, atol=0, rtol=0)
    torch.testing.assert_close(torch.jit.script(encoder)(x), expected)


@pytest.mark.parametrize("size", [8, 24, 40])
def test_vit_refuses_crops_it_was_not_built_for(size: int) -> None:
    """MONAI's ViT takes 8 voxels: one patch, to which all 64 position embeddings broadcast."""
    encoder = PooledEncoder(small_backbone("vit"))
    with pytest.raises(ValueError, match="img_size"):
        encoder(torch.randn(1, 1, size, size, size))


def test_a_crop_of_other_channels_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*in_channels"):
        call_encoder(PooledEncoder(small_backbone("resnet", dims=2)), torch.randn(1, 3, 32, 32))


def test_errors_of_the_device_are_not_taken_for_errors_of_shape() -> None:
    class Full(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        call_encoder(Full(), torch.zeros(1, 1, 4, 4))


def test_a_whole_segmentation_network_is_refused() -> None:
    with pytest.raises(ValueError, match="decoder's output"):
        PooledEncoder(SegResNet(init_filters=8))(torch.randn(1, 1, 16, 16, 16))


def test_unknown_backbones_need_the_number_of_features() -> None:
    convolution = nn.Conv3d(1, 6, 3, stride=2)
    with pytest.raises(ValueError, match="feature_channels"):
        PooledEncoder(convolution, out_channels=3)
    encoder = PooledEncoder(convolution, out_channels=3, feature_channels=6)
    assert encoder(torch.randn(2, 1, 8, 8, 8)).shape == (2, 3)


def normalisations(network: nn.Module) -> set[str]:
    return {type(layer).__name__ for layer in network.modules() if "Norm" in type(layer).__name__}


def test_group_norm_from_a_config() -> None:
    """DenseNet, SegResNet and SegResEncoder take it themselves; ResNet does not hand it on and needs the function."""
    norm = ["group", {"num_groups": 8}]
    config = {
        "densenet": {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 1, "out_channels": 8, "norm": norm},
        "segresnet": {"_target_": "anatomy_ssl.networks.SegResNetEncoder", "norm": norm},
        "segresnet_ds": {"_target_": "monai.networks.nets.segresnet_ds.SegResEncoder", "norm": norm},
        "resnet": {
            "_target_": "anatomy_ssl.networks.with_group_norm",
            "network": {"_target_": "resnet18", "spatial_dims": 2, "n_input_channels": 1, "feed_forward": False},
            "num_groups": 8,
        },
    }
    parser = ConfigParser(config)
    for kind in config:
        assert normalisations(parser.get_parsed_content(kind)) == {"GroupNorm"}, kind
    plain = resnet18(spatial_dims=2, n_input_channels=1, feed_forward=False, norm=norm)
    assert "BatchNorm2d" in normalisations(plain), "MONAI hands norm on now: with_group_norm can go"


def test_with_group_norm_keeps_names_and_scales_and_frees_crops_of_one_another() -> None:
    torch.manual_seed(0)
    network = small_backbone("resnet")
    names = [name for name in network.state_dict() if "running" not in name and "tracked" not in name]
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            nn.init.uniform_(layer.weight)
    scale = network.bn1.weight.clone()
    assert with_group_norm(network, num_groups=2) is network
    assert list(network.state_dict()) == names
    assert torch.equal(network.bn1.weight, scale)
    x = torch.randn(3, 1, 16, 16, 16)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_with_group_norm_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="bn1 of ResNet has 4 channels"):
        with_group_norm(small_backbone("resnet"), num_groups=3)
    with pytest.raises(ValueError, match="no batch normalisation"):
        with_group_norm(nn.Linear(2, 2))


def test_unet_encoder_takes_group_normalisation() -> None:
    """Whose groups divide every level's channels, but not the decoder's outputs, which are left out."""
    norm = ("group", {"num_groups": 4})
    encoder = UNetEncoder(spatial_dims=2, in_channels=1, channels=(8, 16), strides=(2,), num_res_units=2, norm=norm)
    assert encoder(torch.zeros(1, 1, 8, 8)).shape == (1, 16, 4, 4)
