"""ViTGridEncoder: MONAI's ViT, its tokens at their places."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import ViT

from anatomy_ssl.networks.vit import ViTGridEncoder

SHAPE = {"in_channels": 1, "patch_size": 4, "hidden_size": 12, "mlp_dim": 24, "num_layers": 2, "num_heads": 3}


@pytest.mark.parametrize("size", [(12, 8), (8, 12, 4)])
def test_tokens_are_those_of_monais_vit(size: tuple[int, ...]) -> None:
    """For the same weights; token number j lies at the place of patch j, last axis fastest."""
    shape = {**SHAPE, "img_size": size, "spatial_dims": len(size)}
    encoder, plain = ViTGridEncoder(**shape).eval(), ViT(**shape).eval()
    plain.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 1, *size)
    found = encoder(x)
    assert found.shape == (2, 12, *[n // 4 for n in size])
    torch.testing.assert_close(found.flatten(2).mT, plain(x)[0])


def test_a_class_token_attends_and_is_left_out_of_the_map() -> None:
    """It trains; the epsilon is that of every norm; without both, the network is as it was."""
    shape = {**SHAPE, "img_size": (12, 8), "spatial_dims": 2}
    encoder, plain = ViTGridEncoder(**shape, class_token=True, norm_eps=1e-6), ViTGridEncoder(**shape)
    assert set(encoder.state_dict()) - set(plain.state_dict()) == {"cls_token"}
    norms = [layer.eps for layer in encoder.modules() if isinstance(layer, torch.nn.LayerNorm)]
    assert set(norms) == {1e-6}
    x = torch.randn(2, 1, 12, 8)
    found = encoder(x)
    assert found.shape == plain(x).shape
    found.square().sum().backward()
    assert encoder.cls_token.grad.abs().sum() > 0
    with torch.no_grad():
        encoder.cls_token += torch.arange(12.0)  # a constant would be taken away by the norm
    assert not torch.allclose(found, encoder(x))


def test_a_token_is_at_the_place_of_its_patch() -> None:
    """Without attention to the others, a change of one patch changes its own token alone."""
    encoder = ViTGridEncoder(img_size=(12, 8), spatial_dims=2, **SHAPE).eval()
    with torch.no_grad():
        for block in encoder.blocks:
            block.attn.out_proj.weight.zero_()
    x = torch.randn(1, 1, 12, 8)
    changed = x.clone()
    changed[:, :, 8:12, 0:4] += 1
    moved = (encoder(x) != encoder(changed)).any(dim=1)[0]
    assert moved.nonzero().tolist() == [[2, 0]]


def test_every_parameter_that_trains_gets_a_gradient() -> None:
    encoder = ViTGridEncoder(img_size=(8, 8), spatial_dims=2, **SHAPE)
    encoder(torch.randn(1, 1, 8, 8)).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="built for images of"):
        ViTGridEncoder(img_size=(8, 8), spatial_dims=2, **SHAPE)(torch.zeros(1, 1, 12, 8))
