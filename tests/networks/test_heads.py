from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from monai.bundle import ConfigParser
from monai.networks.nets import ViT
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anatomy_ssl.networks.encoders import PooledEncoder
from anatomy_ssl.networks.heads import EncoderWithHeads

TWO_HEADS = """
network:
  _target_: anatomy_ssl.networks.EncoderWithHeads
  encoder: {_target_: DenseNet121, spatial_dims: 3, in_channels: 1, out_channels: 1024}
  heads:
    distance: {_target_: torch.nn.Linear, in_features: 1024, out_features: 512}
    barlow: {_target_: torch.nn.Linear, in_features: 1024, out_features: 2048}
    coordinate:
      {_target_: FullyConnectedNet, in_channels: 1024, hidden_channels: [256], out_channels: 3, act: relu}
"""


class Counting(nn.Module):
    """Encoder with batch normalisation that counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3, 2), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(x)


def small_network() -> EncoderWithHeads:
    torch.manual_seed(0)
    return EncoderWithHeads(Counting(), {"distance": nn.Linear(4, 3), "barlow": nn.Linear(4, 5)})


def crops(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 6, 6, 6, generator=torch.Generator().manual_seed(1))


def test_one_view_gives_the_embedding_and_the_heads_only() -> None:
    network = small_network().eval()
    outputs = network(crops())
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "embedding": (3, 4),
        "distance": (3, 3),
        "barlow": (3, 5),
    }
    torch.testing.assert_close(outputs["distance"], network.heads["distance"](network.encoder(crops())))
    listed = network([crops()])
    assert all(torch.equal(listed[name], value) for name, value in outputs.items())


def test_views_in_one_pass_equal_separate_passes_in_eval_mode() -> None:
    network = small_network().eval()
    views = [crops(), crops() + 1, crops() * 2]
    alone = [network(view) for view in views]
    network.encoder.calls = 0
    together = network(views)
    assert network.encoder.calls == 1
    for name in ("embedding", "distance", "barlow"):
        for i, outputs in enumerate(alone, start=1):
            torch.testing.assert_close(together[f"{name}_{i}"], outputs[name])
        torch.testing.assert_close(together[name], sum(outputs[name] for outputs in alone) / 3)
    assert len(together) == 12


def test_batch_normalisation_sees_all_views_together() -> None:
    network = small_network().train()
    views = [crops(), crops() + 1]
    together = network(views)
    torch.testing.assert_close(
        torch.cat([together["embedding_1"], together["embedding_2"]]), network.encoder(torch.cat(views))
    )


def test_weight_names_and_gradients() -> None:
    network = small_network()
    assert {name.split(".")[0] for name in network.state_dict()} == {"encoder", "heads"}
    assert {"heads.distance.weight", "heads.barlow.bias", "encoder.layers.0.weight"} <= set(network.state_dict())
    outputs = network([crops(), crops() + 1])
    (outputs["distance"].square().sum() + outputs["barlow_1"].square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_heads_are_optional() -> None:
    outputs = EncoderWithHeads(Counting())([crops(), crops()])
    assert list(outputs) == ["embedding", "embedding_1", "embedding_2"]


@pytest.mark.parametrize("name", ["embedding", "embedding_1", "barlow_2"])
def test_names_of_other_outputs_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        EncoderWithHeads(Counting(), {name: nn.Linear(4, 4)})


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        small_network()([crops(3), crops(2)])
    with pytest.raises(ValueError, match="PooledEncoder"):
        EncoderWithHeads(nn.Conv3d(1, 2, 3))(crops())
    with pytest.raises(ValueError, match=r"cannot take crops of shape \(2, 6, 6, 6\)"):
        small_network()(torch.zeros(1, 2, 6, 6, 6))


def test_autocast() -> None:
    network = small_network().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network([crops(), crops() + 1])
    assert outputs["distance"].dtype == torch.bfloat16
    torch.testing.assert_close(
        outputs["distance"].float(), network([crops(), crops() + 1])["distance"], atol=0.05, rtol=0.05
    )


def test_the_two_head_variant_from_a_config(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(TWO_HEADS)
    parser = ConfigParser()
    parser.read_config(path)
    network = parser.get_parsed_content("network")
    outputs = network(torch.randn(2, 1, 32, 32, 32))
    shapes = {name: value.shape[1] for name, value in outputs.items()}
    assert shapes == {"embedding": 1024, "distance": 512, "barlow": 2048, "coordinate": 3}


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=(tmp_path / "init").as_uri(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_training_finds_no_unused_parameter(one_process_group: None) -> None:
    """MONAI's ViT holds norms that it never uses: the second step would fail if they asked for gradients."""
    vit = ViT(1, 16, 8, hidden_size=8, mlp_dim=8, num_layers=1, num_heads=1, spatial_dims=2)
    encoder = PooledEncoder(vit, out_channels=6)
    network = DistributedDataParallel(EncoderWithHeads(encoder, {"distance": nn.Linear(6, 2)}))
    for _ in range(2):
        outputs = network([torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)])
        (outputs["distance"].sum() + outputs["embedding_1"].sum()).backward()
