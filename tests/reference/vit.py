"""The vision transformer of Dosovitskiy et al. 2020, plain, with the names of timm (2D, with a class token)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.reference.swin import State, linear, part

EPSILON = 1e-6


def layer_norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    """Over the last axis."""
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], EPSILON)


def attend(tokens: torch.Tensor, state: State, heads: int) -> torch.Tensor:
    """Self-attention of tokens `(T, C)`, head by head; `qkv` gives queries, keys and values in that order."""
    queries, keys, values = linear(tokens, state, "qkv").chunk(3, dim=1)
    size = tokens.shape[1] // heads
    out = []
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        weights = (queries[:, mine] @ keys[:, mine].T / size**0.5).softmax(dim=1)
        out.append(weights @ values[:, mine])
    return linear(torch.cat(out, dim=1), state, "proj")


def vit(image: torch.Tensor, state: State, heads: int) -> torch.Tensor:
    """Normalised tokens `(1 + T, C)` of an image `(C, H, W)`: the class token, then the patches row by row."""
    weight = state["patch_embed.proj.weight"]
    patch = weight.shape[-1]
    _, height, width = image.shape
    tokens = [state["cls_token"][0, 0]]
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            pixels = image[:, top : top + patch, left : left + patch]
            tokens.append((weight * pixels).sum(dim=(1, 2, 3)) + state["patch_embed.proj.bias"])
    x = torch.stack(tokens) + state["pos_embed"][0]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for number in range(depth):
        block = part(state, f"blocks.{number}.")
        x = x + attend(layer_norm(x, block, "norm1"), part(block, "attn."), heads)
        x = x + linear(F.gelu(linear(layer_norm(x, block, "norm2"), block, "mlp.fc1")), block, "mlp.fc2")
    return layer_norm(x, state, "norm")
