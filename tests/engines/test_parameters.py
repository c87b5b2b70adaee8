"""Layer-wise learning rates."""

from __future__ import annotations

import pytest
from monai.networks.nets import DenseNet121, SwinUNETR, ViT
from torch import nn

from anatomy_ssl.engines.parameters import layerwise_parameters
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
