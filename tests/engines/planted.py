"""Crops whose voxels hold what an encoder should find, besides a lot that it should not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

NOISE = 12  # channels without meaning


class ChannelMeans(nn.Module):
    """A linear map of a crop's channel means."""

    def __init__(self, features: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3 + NOISE, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C, *roi)` -> `(N, features)`."""
        return self.linear(x.flatten(2).mean(2))


def write_planted(path: Path) -> str:
    """Weights with which `ChannelMeans` gives the first three channels and nothing else."""
    encoder = ChannelMeans()
    encoder.load_state_dict({"linear.weight": torch.eye(3, 3 + NOISE), "linear.bias": torch.zeros(3)})
    torch.save({"model": encoder.state_dict()}, path)
    return str(path)


def crops(patients: range, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Items with three meaningful channels: of a volume of world coordinates (in 100 mm), as seen from its origin.

    The first also says how large the lesion in the crop is: mm^3, zero in about half of the crops.
    """
    rng = torch.Generator().manual_seed(seed)
    items = []
    for patient in patients:
        origin = 200 * torch.randn(3, generator=rng)
        for _ in range(count):
            place = 100 * torch.randn(3, generator=rng)
            noise = 3 * torch.randn(NOISE, generator=rng)
            image = torch.cat([place / 100, noise]).view(-1, 1, 1, 1).expand(-1, 2, 2, 2).clone()
            items.append(
                {
                    "image": image,
                    "position": place + origin,
                    "origin": origin,
                    "subject": f"p{patient:02d}",
                    "lesion_volume": float(10 * place[0].clamp(min=0)),
                }
            )
    return items
