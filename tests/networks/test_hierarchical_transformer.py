"""The hierarchical transformer is the network of a plain reference, of any size, in 3D and 2D."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anatomy_ssl.networks import HierarchicalTransformer
from anatomy_ssl.networks.hierarchical_transformer import released_index
from anatomy_ssl.weights.released_alice import alice_encoder
from tests.reference.nnformer import index, nnformer, random_state
from tests.weights.networks import same

TWO: dict[str, Any] = {"embed_dim": 6, "depths": (2, 2), "num_heads": (1, 2), "window_size": (4, 4)}
FOUR: dict[str, Any] = {"embed_dim": 6, "num_heads": (1, 2, 3, 6), "img_size": 32}


def maps(network: HierarchicalTransformer, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """By the names of the reference."""
    stages = network.encode(image[None])
    first = network.first_decoder(stages)
    found = {f"stage {stage}": features[0] for stage, features in enumerate(stages)}
    return {**found, "decoder 0": first[0], "restored": network.restore(stages, first)[0]}


SIZES = {
    "grids of whole windows": (32, 32, 32),
    "padded grids": (24, 24, 24),
    "three sizes": (16, 40, 24),
    "one window along an axis": (16, 24, 24),
}


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_equal_to_the_reference(size: str, released: bool) -> None:
    """With the position embedding, in double precision; and `forward` is the three steps together."""
    state = random_state(6, (1, 2), (4, 4), released, channels=2)
    own, _ = alice_encoder(state, "file", None, "no remedy")
    network = HierarchicalTransformer(in_channels=2, out_channels=2, img_size=SIZES[size], released=released, **TWO)
    rng = torch.Generator().manual_seed(1)
    own["encoder.position_embedding"] = torch.randn(network.encoder.position_embedding.shape, generator=rng)
    network.load_state_dict(own)
    network = network.double().eval()
    image = torch.randn(2, *SIZES[size], generator=rng, dtype=torch.float64)
    with torch.no_grad():
        double = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        positions = network.encoder.position_embedding[0].movedim(0, -1)
        expected = nnformer(image, double, (1, 2), (4, 4), released, positions)
        found = maps(network, image)
        assert torch.equal(network(image[None])[0], found["restored"])
    for name, features in found.items():
        torch.testing.assert_close(features, expected[name], atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("settings", [{"img_size": 32}, {"img_size": 32, "spatial_dims": 2, "embed_dim": 8}])
def test_shapes_and_gradients(settings: dict[str, Any]) -> None:
    """Every parameter is trained, which several processes need."""
    settings = {**FOUR, "num_heads": (1, 2, 4, 8), "in_channels": 2, "drop_path_rate": 0.1, **settings}
    network = HierarchicalTransformer(**settings)
    dims, c = settings.get("spatial_dims", 3), settings["embed_dim"]
    stages = network.encode(torch.randn(2, 2, *[32] * dims))
    assert [tuple(m.shape) for m in stages] == [(2, c * 2**k, *[16 >> k] * dims) for k in range(4)]
    first = network.first_decoder(stages)
    assert first.shape == (2, network.decoder_features, *[4] * dims)
    assert (network.num_features, network.decoder_features) == (8 * c, 4 * c)
    restored = network.restore(stages, first)
    assert restored.shape == (2, 1, *[32] * dims)
    restored.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_position_embedding_is_a_buffer_that_follows_the_image() -> None:
    """In the state dict, equal in every network, trained in none; larger images get it in between."""
    network, other = HierarchicalTransformer(**FOUR).eval(), HierarchicalTransformer(**FOUR)
    name = "encoder.position_embedding"
    positions = network.state_dict()[name]
    assert torch.equal(positions, other.state_dict()[name])
    assert name not in dict(network.named_parameters())
    assert len(positions.flatten(2)[0].T.unique(dim=0)) == 16**3  # each place has its own
    assert not HierarchicalTransformer(**FOUR, released=True).state_dict()[name].any()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 48, 32, 64)).shape == (1, 1, 48, 32, 64)
        network.encoder.position_embedding.fill_(2.0)
        small = network.encode(torch.zeros(1, 1, 32, 32, 32))[0]
        network.encoder.position_embedding = torch.full((1, 6, 8, 8, 8), 2.0)
        assert torch.equal(network.encode(torch.zeros(1, 1, 32, 32, 32))[0], small)


def test_windows_shrink_to_the_grids() -> None:
    """Tables of offsets are of windows that can be; the released order shares biases between offsets."""
    network = HierarchicalTransformer(**FOUR)
    assert network.windows == [(4, 4, 4), (4, 4, 4), (4, 4, 4), (2, 2, 2)]
    assert len(network.encoder.layers[3].blocks[0].attn.relative_position_bias_table) == 3**3
    for size in (2, 4):
        window = (size,) * 3
        assert torch.equal(released_index(window), index(window, True))
        usual = len(index(window, False).unique())
        assert len(released_index(window).unique()) < usual == (2 * size - 1) ** 3


def test_same_seed_same_network() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(HierarchicalTransformer(**FOUR).state_dict())
    assert same(*states)


def test_half_precision() -> None:
    """Under autocast the result is near that of single precision."""
    network = HierarchicalTransformer(**FOUR).eval()
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(image)
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"img_size": 40}, r"cells of 16 voxels, which images of \(40, 40, 40\)"),
        ({"num_heads": (1, 2)}, "must name the same stages"),
        ({"num_heads": (1, 2, 5, 6)}, r"num_heads \[1, 2, 5, 6\] must divide"),
        ({"embed_dim": 8, "num_heads": (1, 2, 4, 8)}, "embed_dim 8 must be a multiple of 6"),
        ({"released": True, "img_size": (32, 32, 64)}, r"windows that are cubes, not \(4, 4, 8\)"),
        ({"released": True, "spatial_dims": 2, "embed_dim": 12}, "windows that are cubes"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalTransformer(**{**FOUR, **settings})


def test_wrong_images_are_refused() -> None:
    """Of no whole cells, or smaller than a window."""
    network = HierarchicalTransformer(**{**FOUR, "img_size": 64})
    with pytest.raises(ValueError, match=r"images of \(32, 32, 24\) voxels do not consist of"):
        network(torch.zeros(1, 1, 32, 32, 24))
    with pytest.raises(ValueError, match=r"smaller than a window of stage 2.*img_size \[32, 32, 32\]"):
        network(torch.zeros(1, 1, 32, 32, 32))
