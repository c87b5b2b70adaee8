"""The Swin transformer as the paper describes it, slow and plain, with the names of the original code (2D).

State dicts have the released layout: `patch_embed.proj`, `layers.I.blocks.J.attn.qkv`, `layers.I.downsample.reduction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

State = Mapping[str, torch.Tensor]


def part(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def layer_norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    """Over the last axis."""
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def linear(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    """With or without bias."""
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def attend(tokens: torch.Tensor, places: list[tuple[int, int]], regions: list[int], state: State, heads: int, w: int):
    """Attention of the tokens `(T, C)` of one window; tokens of other regions are not seen."""
    q, k, v = linear(tokens, state, "qkv").reshape(len(tokens), 3, heads, -1).unbind(1)  # (T, heads, C / heads)
    out = []
    for i, (row, column) in enumerate(places):
        scores = torch.einsum("hc,thc->ht", q[i] * q.shape[-1] ** -0.5, k)
        for j, (other_row, other_column) in enumerate(places):
            index = (row - other_row + w - 1) * (2 * w - 1) + (column - other_column + w - 1)
            scores[:, j] = scores[:, j] + state["relative_position_bias_table"][index]
            if regions[i] != regions[j]:
                scores[:, j] = scores[:, j] - 100.0
        out.append(torch.einsum("ht,thc->hc", scores.softmax(dim=1), v).flatten())
    return linear(torch.stack(out), state, "proj")


def block(x: torch.Tensor, state: State, heads: int, w: int, shift: int) -> torch.Tensor:
    """One block on `(H, W, C)`; H and W are multiples of the window w."""
    height, width, _ = x.shape
    y = layer_norm(x, state, "norm1").roll((-shift, -shift), (0, 1))
    region = torch.zeros(height, width, dtype=torch.int)
    if shift:
        edges_r, edges_c = (height - w, height - shift), (width - w, width - shift)
        rows = torch.tensor([(r >= edges_r[0]) + (r >= edges_r[1]) for r in range(height)])
        columns = torch.tensor([(c >= edges_c[0]) + (c >= edges_c[1]) for c in range(width)])
        region = rows[:, None] * 3 + columns[None]
    out = torch.zeros_like(y)
    places = [(r, c) for r in range(w) for c in range(w)]
    for top in range(0, height, w):
        for left in range(0, width, w):
            box = (slice(top, top + w), slice(left, left + w))
            tokens = y[box].reshape(w * w, -1)
            result = attend(tokens, places, region[box].flatten().tolist(), part(state, "attn."), heads, w)
            out[box] = result.reshape(w, w, -1)
    x = x + out.roll((shift, shift), (0, 1))
    return x + linear(F.gelu(linear(layer_norm(x, state, "norm2"), state, "mlp.fc1")), state, "mlp.fc2")


def merge(x: torch.Tensor, state: State) -> torch.Tensor:
    """(even, even), (odd, even), (even, odd), (odd, odd) of (row, column), normalised and reduced."""
    parts = [x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]]
    return linear(layer_norm(torch.cat(parts, dim=-1), state, "norm"), state, "reduction")


def swin(image: torch.Tensor, state: State, depths: Sequence[int], heads: Sequence[int], w: int) -> torch.Tensor:
    """Tokens `(rows, columns, F)` of an image `(C, H, W)`."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(image[None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)[0]
    x = layer_norm(x.permute(1, 2, 0), state, "patch_embed.norm")
    for i, depth in enumerate(depths):
        for j in range(depth):
            # a grid that is one window has nothing to shift
            shift = 0 if j % 2 == 0 or min(x.shape[:2]) <= w else w // 2
            x = block(x, part(state, f"layers.{i}.blocks.{j}."), heads[i], w, shift)
        if i < len(depths) - 1:
            x = merge(x, part(state, f"layers.{i}.downsample."))
    return layer_norm(x, state, "norm")
