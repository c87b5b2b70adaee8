"""Encoders go into MONAI's networks: the features of the filled part are the source's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SwinUNETR, ViT
from monai.networks.nets.efficientnet import EfficientNetEncoder
from monai.networks.nets.resnet import ResNetEncoder
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn

from anatomy_ssl.networks import EncoderWithHeads, PooledEncoder, SegResNetEncoder
from anatomy_ssl.networks.encoders import UNetEncoder
from anatomy_ssl.weights import LoadReport, load_pretrained
from tests.weights.networks import BLOCKS, densenet, randomised

Features = Callable[[nn.Module, torch.Tensor], Any]
SWIN = {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
UNET = {"channels": [4, 8, 16, 32, 64], "strides": [2, 2, 2, 2], "num_res_units": 2, "norm": "batch"}


def vit(dims: int) -> ViT:
    """As in UNETR, whose patches are of 16 and layers 12."""
    return ViT(1, [32] * dims, [16] * dims, hidden_size=12, mlp_dim=12, num_heads=2, spatial_dims=dims)


def unet_features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What UNet hands to its bottom layer and gets back."""
    found: list[torch.Tensor] = []
    bottom = network.model[1].submodule[1].submodule[1].submodule[1].submodule
    hook = bottom.register_forward_hook(lambda module, inputs, output: found.append(output))
    network(x)
    hook.remove()
    return found[0]


# target and what it takes, source, features of the target
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[int], nn.Module], Features]] = {
    "SwinUNETR": (
        {"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 12, "window_size": 4, **SWIN},
        {"module": "swinViT"},
        lambda d: SwinTransformer(1, 12, [4] * d, [2] * d, **SWIN, spatial_dims=d),
        lambda network, x: network.swinViT(x)[-1],
    ),
    "UNETR": (
        {
            "_target_": "UNETR",
            "in_channels": 1,
            "out_channels": 2,
            "img_size": 32,
            "feature_size": 4,
            "hidden_size": 12,
            "mlp_dim": 12,
            "num_heads": 2,
        },
        {"module": "vit"},
        vit,
        lambda network, x: network.vit(x)[0],
    ),
    "DenseNet121": (
        {"_target_": "DenseNet121", "in_channels": 1, "out_channels": 3, **BLOCKS},
        {},
        lambda d: densenet(dims=d),
        lambda network, x: network.features(x),
    ),
    "FlexibleUNet, resnet": (
        {"_target_": "FlexibleUNet", "in_channels": 1, "out_channels": 2, "backbone": "resnet10"},
        {"module": "encoder"},
        lambda d: ResNetEncoder("resnet10", pretrained=False, spatial_dims=d),
        lambda network, x: network.encoder(x)[-1],
    ),
    "FlexibleUNet, efficientnet": (
        {"_target_": "FlexibleUNet", "in_channels": 1, "out_channels": 2, "backbone": "efficientnet-b0"},
        {"module": "encoder"},
        lambda d: EfficientNetEncoder("efficientnet-b0", pretrained=False, spatial_dims=d, in_channels=1),
        lambda network, x: network.encoder(x)[-1],
    ),
    "SegResNet": (
        {"_target_": "SegResNet", "init_filters": 8},
        {"share_of": "file"},
        lambda d: SegResNetEncoder(spatial_dims=d, init_filters=8),
        lambda network, x: network.encode(x)[0],
    ),
    "SegResNetDS": (
        {"_target_": "SegResNetDS", "init_filters": 8},
        {"module": "encoder"},
        lambda d: SegResEncoder(spatial_dims=d, init_filters=8),
        lambda network, x: network.encoder(x)[-1],
    ),
    "UNet": (
        {"_target_": "UNet", "in_channels": 1, "out_channels": 2, **UNET},
        {"share_of": "file"},
        lambda d: UNetEncoder(spatial_dims=d, in_channels=1, **UNET),
        unet_features,
    ),
}


def build(config: dict[str, Any]) -> Any:
    """A network as a config gives it."""
    return ConfigParser({"network": config}).get_parsed_content("network")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_features_are_the_sources(name: str, dims: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From the checkpoint of a training, whose encoder lies under `encoder.backbone.` (DenseNet: `encoder.`)."""
    target, options, make, features = CASES[name]
    source = randomised(make(dims))
    inner = source if name == "DenseNet121" else PooledEncoder(source)
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": EncoderWithHeads(inner, {"head": nn.Linear(2, 2)}).state_dict()}, path)
    wrapped = {"_target_": "anatomy_ssl.weights.pretrained", "path": str(path), **options}
    network = build({**wrapped, "network": {**target, "spatial_dims": dims}}).eval()
    x = torch.randn(2, 1, *[32] * dims, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = source.features(x) if name == "DenseNet121" else source(x)
        while not isinstance(expected, torch.Tensor):  # stages; ViT: (tokens, hidden states)
            expected = expected[0] if isinstance(expected, tuple) else expected[-1]
        torch.testing.assert_close(features(network, x), expected, atol=1e-6, rtol=1e-6)
        assert features(network, x).abs().max() > 1e-3
        again = features(build({**target, "spatial_dims": dims}).eval(), x)
    assert not torch.allclose(again, expected, atol=1e-3)  # without the file they differ


def load(source: nn.Module, target: nn.Module, folder: Path, **options: Any) -> LoadReport:
    """Through a file."""
    torch.save(source.state_dict(), folder / "w.pt")
    return load_pretrained(target, folder / "w.pt", **options)


@pytest.mark.parametrize(("there", "here"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("name", ["SwinUNETR", "UNETR", "SegResNet", "UNet", "DenseNet121"])
def test_other_input_channels(name: str, there: int, here: int, tmp_path: Path) -> None:
    """Equal channels give the features of the one channel; without the flag the file is refused."""
    target, options, _, features = CASES[name]
    config = {**target, "spatial_dims": 2}
    source, network = (build({**config, "in_channels": channels}).eval() for channels in (there, here))
    randomised(source)
    options = {key: value for key, value in options.items() if key == "module"}
    with pytest.raises(ValueError, match="input layer"):
        load(source, network, tmp_path, minimum_share=0.5, **options)
    report = load(source, network, tmp_path, inflate=True, **options)
    assert report.share > 0.9
    assert len(report.reshaped) >= 1
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        ours, theirs = features(network, x.repeat(1, here, 1, 1)), features(source, x.repeat(1, there, 1, 1))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


class Plain(nn.Module):
    """Convolutions without padding, strided: what 2D weights give in 3D can be told exactly."""

    def __init__(self, dims: int, channels: int = 1) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
        self.layers = nn.Sequential(conv(channels, 4, 3, stride=2), norm(4), nn.ReLU(), conv(4, 6, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C, *)` -> `(N, 6, *)`."""
        return self.layers(x)


@pytest.mark.parametrize("channels", [1, 2])
def test_2d_weights_in_3d_see_the_same_slices(channels: int, tmp_path: Path) -> None:
    """An image that does not change from slice to slice gives the 2D features on every slice."""
    source, network = randomised(Plain(2)), Plain(3, channels).eval()
    with pytest.raises(ValueError, match=r"input layer|under the minimum"):
        load(source, network, tmp_path, minimum_share=0.1)
    report = load(source, network, tmp_path, inflate=True, minimum_share=1.0)
    assert [name for name, _, _ in report.reshaped] == ["layers.0.weight", "layers.3.weight"]
    x = torch.randn(2, 1, 20, 20)
    with torch.no_grad():
        flat, deep = source(x), network(x.repeat(1, channels, 1, 1)[..., None].expand(-1, -1, -1, -1, 12))
    assert deep.ndim == 5
    torch.testing.assert_close(deep, flat[..., None].expand_as(deep), atol=1e-6, rtol=1e-5)


def test_transposed_and_grouped_convolutions_are_not_inflated(tmp_path: Path) -> None:
    """Their responses would change."""
    for make in (
        lambda dims: [nn.ConvTranspose2d, nn.ConvTranspose3d][dims - 2](2, 2, 2, stride=2),
        lambda dims: [nn.Conv2d, nn.Conv3d][dims - 2](4, 4, 3, groups=2),
    ):
        with pytest.raises(ValueError, match="input layer weight"):
            load(make(2), make(3), tmp_path, inflate=True, minimum_share=0)


def test_a_vit_for_another_image_size(tmp_path: Path) -> None:
    """From a cube to UNETR's own grid, which is none; from squares to a cube with both flags."""
    target = {**CASES["UNETR"][0], "spatial_dims": 3, "img_size": [32, 32, 64]}
    network = build(target)
    name = "patch_embedding.position_embeddings"
    with pytest.raises(ValueError, match="under the minimum"):
        load(vit(3), network, tmp_path, module="vit", minimum_share=1.0)
    report = load(source := vit(3), network, tmp_path, module="vit", minimum_share=1.0, interpolate=True)
    assert report.reshaped == [(name, (1, 8, 12), (1, 16, 12))]
    grid = network.vit.patch_embedding.position_embeddings.reshape(2, 2, 4, 12)
    there = source.patch_embedding.position_embeddings.reshape(2, 2, 2, 12)
    torch.testing.assert_close(grid[:, :, [0, -1]], there)
    torch.testing.assert_close(grid.mean(dim=2), there.mean(dim=2))
    report = load(vit(2), deep := vit(3), tmp_path, minimum_share=1.0, interpolate=True, inflate=True)
    assert [changed for changed, _, _ in report.reshaped] == [name, "patch_embedding.patch_embeddings.weight"]
    assert deep.patch_embedding.position_embeddings.reshape(2, 2, 2, 12).std(dim=2).max() == 0


def test_grids_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    """By name, with nothing loaded."""
    long = ViT(1, [32, 32, 48], [16] * 3, hidden_size=12, mlp_dim=12, num_heads=2)
    network = vit(3)
    with pytest.raises(ValueError, match=r"position_embeddings has 12 entries, which are no cube"):
        load(long, network, tmp_path, interpolate=True)
    flat = SwinTransformer(1, 12, [2, 3], [2, 2], [1], [1], spatial_dims=2)
    with pytest.raises(ValueError, match=r"bias_table has 15 entries, which are no square"):
        load(flat, SwinTransformer(1, 12, [4, 4], [2, 2], [1], [1], spatial_dims=2), tmp_path, interpolate=True)


def test_grids_of_another_dimension_do_not_match_by_chance(tmp_path: Path) -> None:
    """64 patches are 8 x 8 or 4 x 4 x 4."""
    square = ViT(1, [64, 64], [8, 8], hidden_size=12, mlp_dim=12, num_heads=2, num_layers=2, spatial_dims=2)
    cube = ViT(1, [32] * 3, [8] * 3, hidden_size=12, mlp_dim=12, num_heads=2, num_layers=2)
    report = load(square, cube, tmp_path, inflate=True)
    assert [name for name, _, _ in report.mismatched] == ["patch_embedding.position_embeddings"]
    report = load(square, cube, tmp_path, inflate=True, interpolate=True)
    assert report.share == 1
    ours = cube.patch_embedding.position_embeddings.reshape(4, 4, 4, 12)
    assert torch.equal(ours[:, :, 0], ours[:, :, 3])


def test_a_swin_with_other_windows_and_another_dimension(tmp_path: Path) -> None:
    flat = SwinTransformer(1, 12, [4, 4], [2, 2], **SWIN, spatial_dims=2)
    larger = SwinTransformer(1, 12, [6, 6], [2, 2], **SWIN, spatial_dims=2)
    assert load(flat, larger, tmp_path, interpolate=True, minimum_share=1.0).share == 1
    deep = SwinTransformer(1, 12, [4] * 3, [2] * 3, **SWIN)
    report = load(flat, deep, tmp_path, interpolate=True, inflate=True, minimum_share=0.7)
    table = deep.layers1[0].blocks[0].attn.relative_position_bias_table.reshape(7, 7, 7, -1)
    assert torch.equal(table[:, :, 0], flat.layers1[0].blocks[0].attn.relative_position_bias_table.reshape(7, 7, -1))
    assert torch.equal(table[:, :, 0], table[:, :, 6])
    # patches are merged four by four in 2D and eight by eight in 3D
    assert all("downsample" in name for name, _, _ in report.mismatched)
    with pytest.raises(ValueError, match="input layer patch_embed"):
        load(flat, deep, tmp_path, interpolate=True, minimum_share=0.1)


def test_swin_with_the_original_names_of_its_mlp(tmp_path: Path) -> None:
    """As in MONAI's own self-supervised weights: `module.` before, fc1 and fc2, and heads that nothing uses."""
    source, network = (SwinUNETR(in_channels=1, out_channels=2, feature_size=12) for _ in range(2))
    state = {f"module.{k.replace('mlp.linear', 'mlp.fc')}": v for k, v in source.swinViT.state_dict().items()}
    torch.save({"state_dict": state | {"module.rotation_head.weight": torch.zeros(4, 12)}}, tmp_path / "swin.pt")
    report = load_pretrained(network, tmp_path / "swin.pt", module="swinViT", minimum_share=1.0)
    assert not report.missing
    expected = source.swinViT.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.swinViT.state_dict().items())
