"""Swin and ViT encoders under the names of timm and of the original Swin code, both ways."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.swin_unetr import WindowAttention
from torch import nn

from anatomy_ssl.networks.swin import SwinEncoder
from anatomy_ssl.networks.vit import ViTGridEncoder
from anatomy_ssl.weights.files import read_weights
from anatomy_ssl.weights.matching import INDEX, MASK, UNUSED, refuse_difference
from anatomy_ssl.weights.record import save_encoder

__all__ = ["export_timm", "from_timm", "to_timm"]

State = Mapping[str, torch.Tensor]
LAYOUTS = ("timm", "original")
DOWNSAMPLE = re.compile(r"^layers\.(\d+)(?=\.downsample\.)")
SWIN_NAMES = ((".mlp.linear1.", ".mlp.fc1."), (".mlp.linear2.", ".mlp.fc2."))  # ours, theirs
VIT_NAMES = (
    ("patch_embedding.patch_embeddings.", "patch_embed.proj."),
    ("patch_embedding.position_embeddings", "pos_embed"),
    (".attn.out_proj.", ".attn.proj."),
    *SWIN_NAMES,
)
TABLE = "layers.{}.blocks.0.attn.relative_position_bias_table"
HEAD_FEATURES = 64  # of an attention head, in all of the ViT paper's sizes; the weights do not tell
TIMM_EPSILON = 1e-6  # of the LayerNorms of timm's ViT; the weights do not tell


def export_timm(encoder: str | os.PathLike[str], output: str | os.PathLike[str], layout: str = "timm") -> Path:
    """Write an encoder file under timm's names, for `load_state_dict` there.

    The file is `{"model": state, "provenance": record}`, which timm's `create_model(checkpoint_path=...)` reads too. It
    has the encoder's weights alone: build timm's network with `num_classes=0`, the same sizes and the same input
    channels. For ViT: `class_token=False` where the encoder has none, and the encoder's eps of the LayerNorms
    (`norm_layer=partial(LayerNorm, eps=1e-5)` unless it has timm's own 1e-6).

    Args:
        encoder: `encoder.pt` of a 2D `SwinEncoder` or `ViTGridEncoder`.
        output: file to write, atomically.
        layout: "timm" (since 0.9: a stage of Swin begins with merging) or "original" (the Swin paper's code and the
            methods' files: a stage ends with merging, and the tables of indices are stored). ViT has one for both.

    Returns:
        `output` as a path.

    Raises:
        FileNotFoundError: if there is no encoder file.
        ValueError: if it cannot be read, or holds anything but such an encoder.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}; choose {', '.join(LAYOUTS)}")
    remedy = "give an encoder alone, as `python -m anatomy_ssl export` writes it"
    state, record = read_weights(encoder)
    check_encoder(state, encoder, remedy)
    return save_encoder(to_timm(state, layout), {**record, "layout": layout}, output)


def to_timm(state: State, layout: str = "timm") -> dict[str, torch.Tensor]:
    """The tensors of a 2D `SwinEncoder` or `ViTGridEncoder` under timm's names; `layout` as in `export_timm`.

    ViT's class token has no position embedding of its own here: timm's is zero.
    """
    state = {name: tensor for name, tensor in state.items() if UNUSED not in name}
    if not _is_vit(state):
        shift = 1 if layout == "timm" else 0
        return {_swin_name(name, SWIN_NAMES, shift): t for name, t in state.items() if shift == 0 or INDEX not in name}
    named = {_replaced(name, VIT_NAMES): tensor for name, tensor in state.items()}
    if "cls_token" in named:
        nowhere = torch.zeros_like(named["cls_token"])
        named["pos_embed"] = torch.cat([nowhere, named["pos_embed"]], dim=1)
    return named


def from_timm(state: State) -> dict[str, torch.Tensor]:
    """Tensors of timm's Swin or ViT, or the original Swin's, under the names of `SwinEncoder` or `ViTGridEncoder`.

    Swin's attention masks, which follow from the size of the images, are left out, and its tables of indices are there
    whether the layout stores them or not. ViT's class token gets its position embedding added. Nothing else is dropped
    or changed.
    """
    if "pos_embed" not in state:
        state = {name: tensor for name, tensor in state.items() if not name.endswith(MASK)}
        shift = 0 if any(name.startswith("layers.0.downsample.") for name in state) else -1
        return _with_indices({_swin_name(name, _theirs(SWIN_NAMES), shift): t for name, t in state.items()})
    named = {_replaced(name, _theirs(VIT_NAMES)): tensor for name, tensor in state.items()}
    if "cls_token" in named:
        positions = named["patch_embedding.position_embeddings"]
        named["cls_token"] = named["cls_token"] + positions[:, :1]
        named["patch_embedding.position_embeddings"] = positions[:, 1:]
    return named


def check_encoder(state: State, source: str | os.PathLike[str], remedy: str) -> tuple[nn.Module, str]:
    """Find the encoder that tensors belong to, from their shapes, and refuse what is not exactly its own.

    Args:
        state: under the names of `SwinEncoder` or `ViTGridEncoder`.
        source: file that it is from, for messages.
        remedy: what to do else.

    Returns:
        The encoder, without memory for its weights, and how it is built.

    Raises:
        ValueError: names what is missing, unknown or of another shape.
    """
    kind: type[nn.Module] = ViTGridEncoder if _is_vit(state) else SwinEncoder
    try:
        settings = _vit_settings(state) if kind is ViTGridEncoder else _swin_settings(state)
    except (KeyError, IndexError, ValueError) as error:
        reason = f"there is no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{source} holds no 2D Swin or ViT of a known layout ({reason}): {remedy}") from error
    with torch.device("meta"):  # names and shapes are enough
        network = kind(**settings)
    own = {name: tensor for name, tensor in network.state_dict().items() if UNUSED not in name}
    found = {name: tensor for name, tensor in state.items() if UNUSED not in name}
    refuse_difference(found, own, f"{source} holds no plain {kind.__name__}", remedy)
    _check_indices(found, source)
    return network, f"{kind.__name__}({', '.join(f'{name}={value}' for name, value in settings.items())})"


def _swin_settings(state: State) -> dict[str, Any]:
    """Arguments of the `SwinEncoder` that has these tensors."""
    embed_dim, channels, patch, _ = state["patch_embed.proj.weight"].shape
    stages = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    tables = [state[TABLE.format(stage)] for stage in range(stages)]
    return {
        "spatial_dims": 2,
        "in_channels": channels,
        "embed_dim": embed_dim,
        "depths": [_count(state, f"layers.{stage}.blocks.") for stage in range(stages)],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": _window(tables[0]),
        "patch_size": patch,
    }


def _vit_settings(state: State) -> dict[str, Any]:
    """Arguments of the `ViTGridEncoder` that has these tensors, for square images."""
    features, channels, patch, _ = state["patch_embedding.patch_embeddings.weight"].shape
    tokens = state["patch_embedding.position_embeddings"].shape[1]
    side = math.isqrt(tokens)
    return {
        "spatial_dims": 2,
        "in_channels": channels,
        "img_size": side * patch if side**2 == tokens else [tokens * patch, patch],
        "patch_size": patch,
        "hidden_size": features,
        "mlp_dim": state["blocks.0.mlp.linear1.weight"].shape[0],
        "num_layers": _count(state, "blocks."),
        "num_heads": 1 if features % HEAD_FEATURES else features // HEAD_FEATURES,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "class_token": "cls_token" in state,
    }


def _with_indices(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With Swin's tables of indices after those of biases, where `SwinEncoder` has them."""
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        whole.setdefault(name, tensor)
        index = name.replace("relative_position_bias_table", INDEX)
        if index != name:
            whole[index] = state.get(index, _index(tensor))
    return whole


def _check_indices(state: State, source: str | os.PathLike[str]) -> None:
    """Refuse tables of indices in another order than the window's, which would mix the biases up."""
    for name, tensor in state.items():
        if name.endswith(INDEX) and not torch.equal(tensor, _index(state[TABLE.format(0)])):
            raise ValueError(f"{source} has another order of biases in {name} than Swin: its features would differ")


def _index(table: torch.Tensor) -> torch.Tensor:
    """MONAI's table of indices for the square window of a table of biases."""
    return WindowAttention(dim=1, num_heads=1, window_size=(_window(table),) * 2).relative_position_index  # type: ignore


def _window(table: torch.Tensor) -> int:
    """Tokens along each axis of the square window that a table of biases is for."""
    return (math.isqrt(table.shape[0]) + 1) // 2


def _count(state: State, prefix: str) -> int:
    """Numbered layers under a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _is_vit(state: State) -> bool:
    """Whether names of ours are ViT's, not Swin's."""
    return any(name.startswith("patch_embedding.") for name in state)


def _theirs(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The other way round."""
    return tuple((new, old) for old, new in pairs)


def _swin_name(name: str, pairs: tuple[tuple[str, str], ...], shift: int) -> str:
    """Renamed, with the merging moved by some stages."""
    return DOWNSAMPLE.sub(lambda found: f"layers.{int(found[1]) + shift}", _replaced(name, pairs))


def _replaced(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name
