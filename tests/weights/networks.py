"""Small networks with weights of a seed, and what is asked of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from monai.networks.nets import DenseNet121
from torch import nn

from anatomy_ssl.networks import EncoderWithHeads

BLOCKS = {"init_features": 8, "growth_rate": 4, "block_config": (1, 1, 1, 1)}


def densenet(seed: int = 0, out_channels: int = 6, dims: int = 2, channels: int = 1) -> DenseNet121:
    """A DenseNet121 of four small blocks."""
    torch.manual_seed(seed)
    return DenseNet121(spatial_dims=dims, in_channels=channels, out_channels=out_channels, **BLOCKS)


def student(seed: int = 0) -> EncoderWithHeads:
    """What a training saves: the DenseNet under `encoder.`, and a head."""
    return EncoderWithHeads(densenet(seed), {"distance": nn.Linear(6, 4)})


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and every statistic of a network drawn anew, so that no two tensors are alike by construction."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=rng) * 0.2
                tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)
    return network.eval()


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Bit-equal, with the same names in the same order."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def saved(content: object, path: Path) -> Path:
    """A network's state dict, or anything else, in a file."""
    torch.save(content.state_dict() if isinstance(content, nn.Module) else content, path)
    return path


def learned(network: nn.Module) -> list[str]:
    """Names of the tensors in which something was learned."""
    return [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
