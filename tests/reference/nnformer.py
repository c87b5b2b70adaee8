"""Alice's encoder-decoder as specified for the authors' files, slow and plain, with their names (3D)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F

from tests.reference.swin import layer_norm, linear, part

State = Mapping[str, torch.Tensor]
Size = tuple[int, int, int]


@cache
def places(w: Size) -> list[Size]:
    """Tokens of a window in their order: the last axis runs fastest."""
    return [(a, b, c) for a in range(w[0]) for b in range(w[1]) for c in range(w[2])]


@cache
def index(w: Size, released: bool) -> torch.Tensor:
    """Where the bias of each pair of a window's tokens is found, `(T, T)`."""
    first = 3 * w[1] - 1 if released else (2 * w[1] - 1) * (2 * w[2] - 1)
    rows = []
    for i in places(w):
        offsets = [[i[axis] - j[axis] + w[axis] - 1 for axis in range(3)] for j in places(w)]
        rows.append([first * a + (2 * w[2] - 1) * b + c for a, b, c in offsets])
    return torch.tensor(rows)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, state: State) -> torch.Tensor:
    """Attention of one window: queries, keys, values `(T, heads, C / heads)`, bias `(T, T, heads)`."""
    scores = torch.einsum("ihc,jhc->ijh", q, k) / q.shape[-1] ** 0.5 + bias
    return linear(torch.einsum("ijh,jhc->ihc", scores.softmax(dim=1), v).flatten(1), state, "proj")


def windowed(
    x: torch.Tensor, skip: torch.Tensor | None, state: State, heads: int, size: int, shifts: bool, released: bool
):
    """Attention in windows of tokens `(D, H, W, C)`, to themselves or to a skip's."""
    grid = x.shape[:3]
    w = tuple(min(size, n) for n in grid)
    shift = tuple(size // 2 if shifts and n > size else 0 for n in grid)
    pad = [side for n, step in zip(grid[::-1], w[::-1]) for side in (0, -n % step)]
    x, other = (F.pad(t, (0, 0, *pad)).roll([-s for s in shift], (0, 1, 2)) for t in (x, x if skip is None else skip))
    # in a rolled grid the last tokens of an axis are from its other end: they do not see the others
    ends = torch.zeros(x.shape[:3], dtype=torch.int)
    for axis, step in enumerate(shift):
        ends.movedim(axis, 0)[x.shape[axis] - step :] += 2**axis
    bias = state["relative_position_bias_table"][index(w, released)]  # (T, T, heads)
    out = torch.zeros_like(x)
    for start in itertools.product(*(range(0, n, step) for n, step in zip(x.shape[:3], w))):
        box = tuple(slice(a, a + step) for a, step in zip(start, w))
        tokens, others, end = x[box].flatten(0, 2), other[box].flatten(0, 2), ends[box].flatten()
        if skip is None:
            q, k, v = linear(tokens, state, "qkv").reshape(len(tokens), 3, heads, -1).unbind(1)
        else:
            q = tokens.reshape(len(tokens), heads, -1)
            k, v = linear(others, state, "kv").reshape(len(tokens), 2, heads, -1).unbind(1)
        unseen = (end[:, None] != end[None])[:, :, None]
        out[box] = attend(q, k, v, bias.masked_fill(unseen, -torch.inf), state).reshape(*w, -1)
    return out.roll(shift, (0, 1, 2))[: grid[0], : grid[1], : grid[2]]


def mlp(x: torch.Tensor, state: State) -> torch.Tensor:
    return x + linear(F.gelu(linear(layer_norm(x, state, "norm2"), state, "mlp.fc1")), state, "mlp.fc2")


def block(x: torch.Tensor, state: State, heads: int, size: int, shifts: bool, released: bool) -> torch.Tensor:
    """Self-attention on `(D, H, W, C)`."""
    y = layer_norm(x, state, "norm1")
    return mlp(x + windowed(y, None, part(state, "attn."), heads, size, shifts, released), state)


def cross_block(
    up: torch.Tensor, skip: torch.Tensor, state: State, heads: int, size: int, released: bool
) -> torch.Tensor:
    """Attention from the decoder's tokens to the encoder's."""
    queries, others = layer_norm(up, state, "norm1"), layer_norm(skip, state, "norm1")
    attended = windowed(queries, others, part(state, "attn."), heads, size, False, released)
    return mlp(up + skip + attended, state)


def conv(x: torch.Tensor, state: State, name: str, stride: int) -> torch.Tensor:
    """Of `(D, H, W, C)`, 3 x 3 x 3 with padding."""
    moved = x.movedim(-1, 0)[None]
    return F.conv3d(moved, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding=1)[0].movedim(0, -1)


def up(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    """Each token of `(D, H, W, C)` becomes 2 x 2 x 2."""
    blocks = torch.einsum("dhwc,cofgk->dfhgwko", x, state[f"{name}.weight"])
    return blocks.reshape(*(2 * n for n in x.shape[:3]), -1) + state[f"{name}.bias"]


def patches(image: torch.Tensor, state: State) -> torch.Tensor:
    """Tokens of `(C, D, H, W)`."""
    x = layer_norm(F.gelu(conv(image.movedim(0, -1), state, "proj1.conv1", 2)), state, "proj1.norm1")
    x = layer_norm(F.gelu(conv(x, state, "proj1.conv2", 1)), state, "proj1.norm2")
    x = layer_norm(F.gelu(conv(x, state, "proj2.conv1", 1)), state, "proj2.norm1")
    return layer_norm(conv(x, state, "proj2.conv2", 1), state, "norm")


def nnformer(
    image: torch.Tensor,
    state: State,
    heads: Sequence[int],
    windows: Sequence[int],
    released: bool,
    positions: torch.Tensor | float = 0.0,
) -> dict[str, torch.Tensor]:
    """Maps `(C, D, H, W)` of an image `(C, D, H, W)`: `stage I`, `decoder I` and `restored`; two blocks a stage."""
    x = patches(image, part(state, "model_down.patch_embed.")) + positions
    skips, found = [], {}
    for i, (number, size) in enumerate(zip(heads, windows)):
        for j in range(2):
            x = block(x, part(state, f"model_down.layers.{i}.blocks.{j}."), number, size, j == 1, released)
        skips.append(layer_norm(x, state, f"model_down.norm{i}"))
        found[f"stage {i}"] = skips[-1].movedim(-1, 0)
        if i < len(heads) - 1:
            name = f"model_down.layers.{i}.downsample"
            x = conv(layer_norm(F.gelu(x), state, f"{name}.norm"), state, f"{name}.reduction", 2)
    x = skips.pop()
    for i, (number, size) in enumerate([*zip(heads, windows)][-2::-1]):
        own = part(state, f"decoder.layers.{i}.")
        x = up(layer_norm(x, own, "Upsample.norm"), own, "Upsample.up")
        x = cross_block(x, skips.pop(), part(own, "blocks.0."), number, size, released)
        x = block(x, part(own, "blocks.1."), number, size, True, released)
        found[f"decoder {i}"] = x.movedim(-1, 0)
    return {**found, "restored": up(x, state, "final.0.up").movedim(-1, 0)}


def random_state(
    features: int, heads: Sequence[int], windows: Sequence[int], released: bool, seed: int = 0, channels: int = 1
) -> dict[str, torch.Tensor]:
    """Random weights of every tensor that is specified for the backbone in the authors' files, with their shapes."""
    rng = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model_down.mask_token": (1, 1, features)}
    tables: dict[str, torch.Tensor] = {}

    def both(name: str, *shape: int, outputs: int | None = None) -> None:
        shapes.update({f"{name}.weight": shape, f"{name}.bias": (shape[0] if outputs is None else outputs,)})

    def blocks(name: str, c: int, number: int, w: int, crossed: bool) -> None:
        for j in range(2):
            own = f"{name}.blocks.{j}"
            both(f"{own}.norm1", c)
            shapes[f"{own}.attn.relative_position_bias_table"] = ((2 * w - 1) ** 3, number)
            tables[f"{own}.attn.relative_position_index"] = index((w, w, w), released)
            both(f"{own}.attn.kv", 2 * c, c) if crossed and j == 0 else both(f"{own}.attn.qkv", 3 * c, c)
            both(f"{own}.attn.proj", c, c)
            both(f"{own}.norm2", c)
            both(f"{own}.mlp.fc1", 4 * c, c)
            both(f"{own}.mlp.fc2", c, 4 * c)

    half = features // 2
    embedding = {"proj1.conv1": (half, channels), "proj1.conv2": (half, half), "proj2.conv1": (features, half)}
    for name, shape in {**embedding, "proj2.conv2": (features, features)}.items():
        both(f"model_down.patch_embed.{name}", *shape, 3, 3, 3)
    for name, c in {"proj1.norm1": half, "proj1.norm2": half, "proj2.norm1": features, "norm": features}.items():
        both(f"model_down.patch_embed.{name}", c)
    stages = [(features * 2**i, number, w) for i, (number, w) in enumerate(zip(heads, windows))]
    for i, (c, number, w) in enumerate(stages):
        blocks(f"model_down.layers.{i}", c, number, w, False)
        both(f"model_down.norm{i}", c)
        if i < len(stages) - 1:
            both(f"model_down.layers.{i}.downsample.norm", c)
            both(f"model_down.layers.{i}.downsample.reduction", 2 * c, c, 3, 3, 3)
            both(f"final.{i}.up", c, channels, 2, 2, 2, outputs=channels)
    for i, (c, number, w) in enumerate(stages[-2::-1]):
        both(f"decoder.layers.{i}.Upsample.norm", 2 * c)
        both(f"decoder.layers.{i}.Upsample.up", 2 * c, c, 2, 2, 2, outputs=c)
        blocks(f"decoder.layers.{i}", c, number, w, True)
    drawn = {name: 0.07 * torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    for name, tensor in drawn.items():  # so that biases matter, and norms do not vanish
        tensor.mul_(10 if "bias_table" in name else 1).add_("norm" in name and name.endswith("weight"))
    return drawn | tables
