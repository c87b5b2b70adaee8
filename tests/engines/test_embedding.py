"""Embedding crops with a frozen encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from torch import nn

from anatomy_ssl.engines.embedding import embed_crops


class Recorder(nn.Module):
    """A small encoder with everything that can change: batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.Dropout(0.5), nn.Flatten(2))
        self.grad_enabled: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.grad_enabled.append(torch.is_grad_enabled())
        return self.layers(x).mean(2)  # (N, 3)


def items(count: int = 7, **extra: Any) -> list[dict[str, Any]]:
    """Crops that differ, of two patients."""
    rng = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(1, 4, 4, 4, generator=rng) + i,
            "position": torch.tensor([float(i), 0.0, 1.0]),
            "subject": f"p{i % 2}",
            **extra,
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_is_frozen_and_left_in_its_mode(training: bool) -> None:
    """No gradient, no dropout, batch statistics used but not changed."""
    encoder = Recorder().train(training)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    first, second = (embed_crops(encoder, DataLoader(items(), batch_size=3), "cpu") for _ in range(2))
    assert np.array_equal(first.embedding, second.embedding)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert {module.training for module in encoder.modules()} == {training}
    assert set(encoder.grad_enabled) == {False}


def test_rows_are_in_the_order_of_the_loader_whatever_the_batch_size() -> None:
    """Each row belongs to its crop."""
    encoder = Recorder().eval()
    crops = items(extra_number=2.5)
    expected = torch.cat([encoder(crop["image"][None]) for crop in crops]).detach().numpy()
    for batch_size in (1, 3, 7):
        emb = embed_crops(encoder, DataLoader(crops, batch_size=batch_size), "cpu", extra_keys=["extra_number"])
        assert np.allclose(emb.embedding, expected, atol=1e-6)
        assert emb.position[:, 0].tolist() == list(range(7))
        assert emb.subject.tolist() == [f"p{i % 2}" for i in range(7)]
        assert emb.extra["extra_number"].tolist() == [2.5] * 7


def test_source_and_origin_go_along_where_they_are_known() -> None:
    """Else the file is empty and the origin zero."""
    known = embed_crops(
        Recorder(), DataLoader(items(origin=torch.tensor([1.0, 2.0, 3.0]), source="a.nii"), batch_size=4), "cpu"
    )
    assert set(known.image) == {"a.nii"}
    assert known.origin.tolist() == [[1, 2, 3]] * 7
    unknown = embed_crops(Recorder(), DataLoader(items(), batch_size=4), "cpu")
    assert set(unknown.image) == {""}
    assert not unknown.origin.any()


def test_no_crops() -> None:
    """An empty loader is an error, not an empty table."""
    with pytest.raises(ValueError, match="no embeddings"):
        embed_crops(Recorder(), [], "cpu")
