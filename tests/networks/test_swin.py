"""SwinEncoder: the original Swin transformer, token by token."""

from __future__ import annotations

import pytest
import torch

from anatomy_ssl.networks.swin import SwinEncoder
from tests.reference.swin import swin

SMALL = {"in_channels": 1, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "drop_path_rate": 0.0}


def randomised(network: SwinEncoder, seed: int = 0) -> SwinEncoder:
    """With weights that are not those of a fresh network, in which many are zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network.eval()


def original_names(network: SwinEncoder) -> dict[str, torch.Tensor]:
    """The weights under the names of the original code."""
    return {name.replace("mlp.linear", "mlp.fc"): value for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("window", "size"), [(4, (64, 96)), (2, (32, 48)), (4, (32, 32))])
def test_tokens_are_those_of_the_paper(window: int, size: tuple[int, int]) -> None:
    """Shifted windows, masks, relative positions, order of merging: against a reference in plain loops."""
    network = randomised(SwinEncoder(window_size=window, patch_size=4, **SMALL))
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network(image)
        for n in range(2):
            expected = swin(image[n], original_names(network), SMALL["depths"], SMALL["num_heads"], window)
            torch.testing.assert_close(found[n].permute(1, 2, 0), expected, rtol=1e-4, atol=1e-5)


def test_defaults_are_swin_b() -> None:
    """87 million parameters without the classifier, 32 pixels a token."""
    with torch.device("meta"):
        network = SwinEncoder()
    assert sum(p.numel() for p in network.parameters()) == 86_743_224
    assert (network.cell_size, network.num_features) == (32, 1024)


@pytest.mark.parametrize("dims", [2, 3])
def test_one_token_for_each_cell(dims: int) -> None:
    network = SwinEncoder(dims, patch_size=2, window_size=2, **SMALL).eval()
    sizes = [12, 8, 4][:dims]
    image = torch.randn(1, 1, *sizes)
    assert network(image).shape == (1, 16, *[size // 4 for size in sizes])


@pytest.mark.parametrize("dims", [2, 3])
def test_every_parameter_learns(dims: int) -> None:
    """Unused parameters stop distributed training."""
    network = SwinEncoder(dims, patch_size=2, window_size=2, **SMALL)
    network(torch.randn(2, 1, *[8] * dims)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="cells of 8 voxels"):
        SwinEncoder(patch_size=4, **SMALL)(torch.zeros(1, 1, 16, 20))
    with pytest.raises(ValueError, match="same stages"):
        SwinEncoder(depths=[2, 2], num_heads=[1])
