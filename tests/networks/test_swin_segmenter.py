"""SwinSegmenter: every stage of the encoder decoded, up to the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anatomy_ssl.networks.swin import SwinEncoder
from anatomy_ssl.networks.swin_segmenter import SwinSegmenter
from anatomy_ssl.weights.loading import pretrained
from anatomy_ssl.weights.record import save_encoder


def encoder(dims: int = 2, patch_size: int = 4, stages: int = 2, seed: int = 0, **changes: Any) -> SwinEncoder:
    """A tiny one."""
    torch.manual_seed(seed)
    size = {"embed_dim": 8, "depths": [2] * stages, "num_heads": [1] * stages, "window_size": 3, "drop_path_rate": 0.0}
    return SwinEncoder(dims, in_channels=1, patch_size=patch_size, **{**size, **changes})


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (1, 1)])
def test_stages_are_what_each_merging_gets(grid: tuple[int, int]) -> None:
    """Against the layers one by one, without their merging; also where windows do not fill the grid."""
    network = encoder(stages=3).eval()
    image = torch.randn(2, 1, *[n * network.cell_size for n in grid])
    with torch.no_grad():
        found = network.stages(image)
        torch.testing.assert_close(found[-1], network(image), rtol=0, atol=0)
        x = network.patch_embed(image)
        for layer, stage in zip(network.layers[:-1], found):
            merging, layer.downsample = layer.downsample, None
            unmerged = layer(x.contiguous())
            torch.testing.assert_close(stage, unmerged, rtol=0, atol=0)
            x = merging(unmerged.movedim(1, -1)).movedim(-1, 1)
    assert [tuple(s.shape[1:]) for s in found] == [(8 * 2**k, *[n * 4 // 2**k for n in grid]) for k in range(3)]


def test_stages_leave_no_trace() -> None:
    """Also where the image is refused: a later call keeps nothing of an earlier one."""
    network = encoder()
    with pytest.raises(ValueError, match="cells of 8 voxels"):
        network.stages(torch.zeros(1, 1, 12, 16))
    assert [len(network.stages(torch.zeros(1, 1, 8, 16))) for _ in range(2)] == [2, 2]
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("dims", "patch_size", "stages"),
    [(2, 4, 3), (2, 3, 1), (2, 6, 2), (2, 5, 1), (2, 1, 2), (2, 16, 1), (3, 2, 2), (3, 1, 1)],
)
def test_one_logit_for_each_pixel_and_structure_and_every_parameter_learns(
    dims: int, patch_size: int, stages: int
) -> None:
    network = SwinSegmenter(encoder(dims, patch_size, stages), num_classes=3, features=4)
    image = torch.randn(2, 1, *[network.encoder.cell_size * n for n in (2, 3, 1)[:dims]])
    logits = network(image)
    assert logits.shape == (2, 3, *image.shape[2:])
    torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.rand_like(logits)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert {name.split(".")[0] for name in network.state_dict()} == {"encoder", "decoder"}


@pytest.mark.parametrize("cells", [1, 2])
def test_trains_on_a_single_cell(cells: int) -> None:
    """A grid of one token has no variance that an instance norm could divide by."""
    network = SwinSegmenter(encoder(), num_classes=1, features=4)
    assert network(torch.randn(1, 1, 8 * cells, 8)).isfinite().all()


def test_every_stage_and_the_image_reach_the_result() -> None:
    """A decoder that drops a skip connection loses detail, not its shape."""
    network = SwinSegmenter(encoder(stages=3), num_classes=1, features=4).eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        stages = network.encoder.stages(image)
        before = network.decoder(image, stages)
        assert not torch.allclose(network.decoder(torch.randn_like(image), stages), before)
        for k in range(3):
            other = [torch.randn_like(s) if i == k else s for i, s in enumerate(stages)]
            assert not torch.allclose(network.decoder(image, other), before), k


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="crop or pad them"):
        SwinSegmenter(encoder(), num_classes=1)(torch.zeros(1, 1, 16, 20))


def test_takes_the_pretrained_encoder_as_it_is(tmp_path: Path) -> None:
    trained = encoder(seed=1)
    record = {"method": "peac", "spatial_dims": 2, "cell_size": 8}
    save_encoder(trained.state_dict(), record, tmp_path / "encoder.pt")
    network = SwinSegmenter(encoder(), num_classes=2)
    fresh = {name: value.clone() for name, value in network.decoder.state_dict().items()}
    recipe = {"spatial_dims": 2, "cell_size": 8}
    pretrained(network, tmp_path / "encoder.pt", "encoder", minimum_share=1.0, recipe=recipe)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in network.encoder.state_dict().items())
    assert all(torch.equal(value, fresh[name]) for name, value in network.decoder.state_dict().items())
    with pytest.raises(ValueError, match="cell_size 8, this run has 16"):
        pretrained(network, tmp_path / "encoder.pt", "encoder", recipe={"cell_size": 16})


def test_learns_edges_finer_than_its_patches() -> None:
    """One image with a disc and a ring over it, in some steps: two structures that overlap."""
    torch.manual_seed(0)
    network = SwinSegmenter(encoder(), num_classes=2, features=8)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(24), indexing="ij")
    radius = ((y - 15.0) ** 2 + (x - 11.0) ** 2).sqrt()
    truth = torch.stack([radius < 9, (radius > 4) & (radius < 7)]).float()[None]
    image = truth.sum(dim=1, keepdim=True) + 0.1 * torch.randn(1, 1, 32, 24)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(image), truth).backward()
        optimizer.step()
    found = (network(image) > 0).float()
    dice = 2 * (found * truth).sum(dim=(0, 2, 3)) / (found + truth).sum(dim=(0, 2, 3))
    assert dice.min() > 0.95
