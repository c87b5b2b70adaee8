"""Layer-wise learning rates; weight decay where it belongs."""

from __future__ import annotations

import pytest
from monai.networks.nets import DenseNet121, SwinUNETR, ViT
from torch import nn

from anatomy_ssl.engines.parameters import decayed_parameters, layerwise_parameters
from anatomy_ssl.networks.distillation_head import DistillationHead
from anatomy_ssl.networks.heads import EncoderWithClassifier


def rates(network: nn.Module, decay: float, module: str) -> dict[str, float]:
    """Learning rate of every parameter, by name; every parameter is in one group."""
    groups = layerwise_parameters(network, 1.0, decay, module)
    members = [(id(p), group["lr"]) for group in groups for p in group["params"]]
    assert len(members) == len(dict(members)) == len(list(network.parameters()))
    return {name: dict(members)[id(p)] for name, p in network.named_parameters()}


def test_rate_falls_by_the_factor_per_stage() -> None:
    encoder = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4)))
    network = EncoderWithClassifier(encoder, 4, 1)
    found = rates(network, 0.5, "encoder")
    assert [found[f"{name}.weight"] for name in ("encoder.0", "encoder.2.0", "encoder.2.1", "head")] == [
        0.125,
        0.25,
        0.5,
        1.0,
    ]


@pytest.mark.parametrize(
    ("network", "module", "order"),
    [
        (
            DenseNet121(spatial_dims=2, in_channels=1, out_channels=2),
            "features",
            ["features.conv0", "features.denseblock1", "features.transition1", "features.denseblock4", "class_layers"],
        ),
        (
            SwinUNETR(in_channels=1, out_channels=2, feature_size=12),
            "swinViT",
            ["swinViT.patch_embed", "swinViT.layers1", "swinViT.layers4", "decoder1"],
        ),
        (
            ViT(in_channels=1, img_size=(32, 32), patch_size=16, spatial_dims=2, num_layers=2, classification=True),
            "",
            ["patch_embedding", "blocks.0", "blocks.1"],
        ),
    ],
)
def test_order_is_that_of_the_network(network: nn.Module, module: str, order: list[str]) -> None:
    found = rates(network, 0.8, module)
    firsts = [next(rate for name, rate in found.items() if name.startswith(prefix)) for prefix in order]
    assert firsts == sorted(firsts)
    assert len(set(firsts)) == len(firsts)


def test_a_block_is_one_stage() -> None:
    """However many layers it has: else the decay of a DenseNet's 60 layers would freeze its first ones."""
    network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2)
    found = rates(network, 0.8, "")
    assert len({rate for name, rate in found.items() if "denseblock3" in name}) == 1
    assert min(found.values()) > 0.05


def test_no_decay_is_one_group() -> None:
    (group,) = layerwise_parameters(nn.Linear(2, 2), 0.1)
    assert group["lr"] == 0.1


@pytest.mark.parametrize(("decay", "module", "match"), [(0.0, "", "decay"), (1.5, "", "decay"), (0.5, "vit", "'vit'")])
def test_refuses(decay: float, module: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        layerwise_parameters(nn.Linear(2, 2), 0.1, decay, module)


def test_matrices_and_kernels_decay_and_nothing_else() -> None:
    """Of a SwinUNETR with a head: no bias, norm, bias table or gain, and nothing that takes no gradient."""
    swin = SwinUNETR(1, 1, feature_size=12, depths=(1, 1, 1, 1), window_size=4, spatial_dims=2, norm_name="batch")
    network = nn.ModuleDict({"swin": swin, "head": DistillationHead(4, 4, 4, 4, train_gain=True)})
    swin.out.requires_grad_(False)
    decayed, free = decayed_parameters(network, 0.04)
    names = {id(p): name for name, p in network.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.04, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == len(names) - 2
    assert {names[id(p)].rsplit(".", 1)[1] for p in free["params"]} == {
        "bias", "weight", "relative_position_bias_table", "original0"
    }  # fmt: skip
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight", "original1"}
    assert all(p.ndim == 1 for p in free["params"] if names[id(p)].endswith((".weight", ".bias")))


@pytest.mark.parametrize("weight_decay", [0.0, -0.1])
def test_groups_without_decay_are_refused(weight_decay: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        decayed_parameters(nn.Linear(2, 2), weight_decay)
