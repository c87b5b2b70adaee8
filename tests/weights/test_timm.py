"""Encoders under timm's names and back, and files with such names in MONAI's networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR
from torch import nn

from anatomy_ssl.networks import GridConsistencyNetwork, StudentTeacher, SwinEncoder, ViTGridEncoder
from anatomy_ssl.weights import export_encoder, import_released, inspect, load_pretrained, read_state, save_encoder
from anatomy_ssl.weights.matching import UNUSED, counts
from anatomy_ssl.weights.timm import export_timm, from_timm, to_timm
from tests.reference.swin import swin
from tests.reference.vit import vit
from tests.weights.networks import randomised, same, saved

SWIN = {"in_channels": 1, "embed_dim": 8, "depths": [2, 2, 1], "num_heads": [2, 4, 8], "window_size": 2}
VIT = {"in_channels": 1, "img_size": 32, "patch_size": 8, "hidden_size": 128, "mlp_dim": 48, "num_layers": 2}
VIT |= {"num_heads": 2, "spatial_dims": 2, "qkv_bias": True}
ENCODERS: dict[str, Any] = {
    "swin": lambda: SwinEncoder(**SWIN),
    "vit": lambda: ViTGridEncoder(**VIT),
    "vit with a class token": lambda: ViTGridEncoder(**VIT, class_token=True, norm_eps=1e-6),
}


def encoder_file(network: nn.Module, folder: Path, **record: Any) -> Path:
    return save_encoder(network.state_dict(), {"method": "peac", "seed": 3, **record}, folder / "encoder.pt")


@pytest.mark.parametrize("layout", ["timm", "original"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_there_and_back_is_bit_equal(kind: str, layout: str, tmp_path: Path) -> None:
    """The weights, and what the record says of the training."""
    network = randomised(ENCODERS[kind]())
    path = encoder_file(network, tmp_path)
    exported = export_timm(path, tmp_path / "timm.pt", layout)
    assert inspect(exported).provenance == {"method": "peac", "seed": 3, "layout": layout}
    back = import_released(exported, tmp_path / "back.pt", "timm")
    own = {name: tensor for name, tensor in network.state_dict().items() if UNUSED not in name}
    assert read_state(back).keys() == own.keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in read_state(back).items())
    record = inspect(back).provenance
    assert (record["method"], record["seed"], record["channels"]) == ("peac", 3, 1)
    assert record.get("norm_eps") == (None if kind == "swin" else 1e-5)


def test_an_epsilon_of_the_record_stays(tmp_path: Path) -> None:
    network = ENCODERS["vit with a class token"]()
    exported = export_timm(encoder_file(network, tmp_path, norm_eps=1e-6), tmp_path / "timm.pt")
    assert inspect(import_released(exported, tmp_path / "back.pt", "timm")).provenance["norm_eps"] == 1e-6


def test_names_of_swin() -> None:
    """Merging begins a stage in timm and no indices are stored; it ends one in the original, with them."""
    state = SwinEncoder(**SWIN).state_dict()
    new, old = to_timm(state), to_timm(state, "original")
    assert {name.split(".downsample")[0] for name in new if "downsample" in name} == {"layers.1", "layers.2"}
    assert {name.split(".downsample")[0] for name in old if "downsample" in name} == {"layers.0", "layers.1"}
    assert new["layers.2.downsample.reduction.weight"] is state["layers.1.downsample.reduction.weight"]
    assert not any("relative_position_index" in name for name in new)
    assert set(old) - set(new) > {"layers.0.blocks.0.attn.relative_position_index"}
    assert "layers.0.blocks.0.mlp.fc1.weight" in new
    assert not any("linear" in name for name in (*new, *old))


def test_features_under_timms_names_are_those_of_the_references() -> None:
    image = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(1))
    network = randomised(SwinEncoder(**SWIN))
    with torch.no_grad():
        expected = swin(image, to_timm(network.state_dict(), "original"), SWIN["depths"], SWIN["num_heads"], 2)
        torch.testing.assert_close(network(image[None])[0].permute(1, 2, 0), expected, atol=1e-5, rtol=1e-5)
        network = randomised(ENCODERS["vit with a class token"]())
        expected = vit(image, to_timm(network.state_dict()), 2)[1:]
        torch.testing.assert_close(network(image[None])[0].flatten(1).T, expected, atol=1e-5, rtol=1e-5)


def test_any_width_of_vit_is_exported(tmp_path: Path) -> None:
    """And images that are no squares: both are told only where the encoder is built."""
    network = ViTGridEncoder(**{**VIT, "hidden_size": 12, "img_size": (32, 16)})
    assert read_state(export_timm(encoder_file(network, tmp_path), tmp_path / "t.pt"))["pos_embed"].shape == (1, 8, 12)


def test_only_encoders_alone_are_exported(tmp_path: Path) -> None:
    for number, (network, reason) in enumerate(
        [
            (nn.Linear(2, 2), r"there is no patch_embed\.proj\.weight"),
            (SwinEncoder(3, **SWIN), "2D"),
            (nn.ModuleDict({"encoder": SwinEncoder(**SWIN)}), "holds no 2D"),
        ]
    ):
        path = saved(network, tmp_path / f"{number}.pt")
        with pytest.raises(ValueError, match=rf"{number}\.pt.*{reason}.*anatomy_ssl export"):
            export_timm(path, tmp_path / "timm.pt")
    with pytest.raises(ValueError, match="no layout 'keras'; choose timm, original"):
        export_timm(path, tmp_path / "timm.pt", "keras")
    assert not (tmp_path / "timm.pt").exists()


@pytest.mark.parametrize("layout", ["timm", "original"])
def test_configs_read_both_layouts(layout: str, tmp_path: Path) -> None:
    """Without an import: every tensor, merging included, finds its place."""
    source, ours = randomised(SwinEncoder(**SWIN)), SwinEncoder(**SWIN)
    path = saved({f"backbone.{n}": t for n, t in to_timm(source.state_dict(), layout).items()}, tmp_path / "t.pt")
    assert load_pretrained(ours, path, minimum_share=1.0).share == 1
    assert same(ours.state_dict(), source.state_dict())


def stages(network: SwinEncoder, x: torch.Tensor) -> list[torch.Tensor]:
    """After each merging."""
    x, found = network.patch_embed(x), []
    for layer in network.layers[:-1]:
        x = layer(x.contiguous())
        found.append(x)
    return found


@pytest.mark.parametrize("names", ["ours", "timm's"])
@pytest.mark.parametrize("dims", [2, 3])
def test_swin_unetr_takes_a_swin_of_small_patches(dims: int, names: str, tmp_path: Path) -> None:
    """The 3D recipe's Swin goes into SwinUNETR, and the stages that both have are equal."""
    shape = {"depths": [2, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 2, "spatial_dims": dims}
    source = randomised(SwinEncoder(in_channels=1, embed_dim=12, patch_size=2, **shape))
    state = source.state_dict() if names == "ours" else to_timm(source.state_dict())
    path = saved(state, tmp_path / "encoder.pt")
    network = SwinUNETR(1, 2, feature_size=12, patch_norm=True, downsample="mergingv2", **shape).eval()
    report = load_pretrained(network, path, module="swinViT")
    left = sorted(name for name in report.missing if counts(name))
    assert left == [f"layers4.0.downsample.{n}" for n in ("norm.bias", "norm.weight", "reduction.weight")]
    x = torch.randn(1, 1, *[32] * dims, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network.swinViT(x, normalize=False)[1:4]
        for ours, theirs in zip(stages(source, x), found, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_another_order_of_merging_is_refused(tmp_path: Path) -> None:
    """MONAI's first `PatchMerging` fits by shape in 3D, and would give other features."""
    shape = {"depths": [1] * 4, "num_heads": [1, 2, 4, 8], "window_size": 2, "spatial_dims": 3}
    path = saved(SwinEncoder(in_channels=1, embed_dim=12, patch_size=2, **shape), tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match=r"encoder\.pt.*layers1\.0\.downsample: build SwinUNETR with .*mergingv2"):
        load_pretrained(SwinUNETR(1, 2, feature_size=12, patch_norm=True, **shape), path, module="swinViT")


def test_a_training_checkpoint_of_two_branches(tmp_path: Path) -> None:
    """PEAC's own checkpoint.pt: both branches fit, so that one has to be named; export takes one, too."""
    encoder = SwinEncoder(**SWIN)
    branch = GridConsistencyNetwork(encoder, encoder.num_features, [2, 2], encoder.cell_size, 1, True, 8, 8)
    network = StudentTeacher(branch)
    randomised(network)
    path = saved({"model": network.state_dict(), "provenance": {"method": "peac"}}, tmp_path / "checkpoint.pt")
    ours = SwinEncoder(**SWIN)
    with pytest.raises(ValueError, match=r"'student\.encoder\.', file 'teacher\.encoder\.'.*give prefix"):
        load_pretrained(ours, path)
    for name in ("student", "teacher"):
        assert load_pretrained(ours, path, prefix=f"{name}.encoder", minimum_share=1.0).share == 1
        assert same(ours.state_dict(), getattr(network, name).encoder.state_dict())
    exported = export_encoder(path, tmp_path / "encoder.pt", part="teacher.encoder")
    assert same(read_state(exported), network.teacher.encoder.state_dict())
    assert same(from_timm(read_state(export_timm(exported, tmp_path / "timm.pt"))), read_state(exported))
