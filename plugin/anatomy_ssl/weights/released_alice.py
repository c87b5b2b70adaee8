"""The Alice authors' network under the names of `HierarchicalTransformer`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.swin_unetr import WindowAttention

from anatomy_ssl.data.atomic import safe_load
from anatomy_ssl.networks.hierarchical_transformer import HierarchicalTransformer, released_index
from anatomy_ssl.weights.files import file_hash
from anatomy_ssl.weights.matching import INDEX, refuse_difference
from anatomy_ssl.weights.resize import BIAS

__all__ = ["alice_encoder"]

State = Mapping[str, torch.Tensor]
STEM = "model_down.patch_embed.proj1.conv1.weight"
UNUSED = re.compile(r"^(model_down\.mask_token$|final\.[1-9])")  # of coarser maps, which Alice does not restore from
NAMES = (  # theirs, ours
    (re.compile(r"^model_down\.layers\.(\d+)\.downsample\."), r"encoder.downsamples.\1."),
    (re.compile(r"^model_down\.norm(\d+)\."), r"encoder.norms.\1."),
    (re.compile(r"^model_down\."), "encoder."),
    (re.compile(r"^final\.0\.up\."), "final."),
    (re.compile(r"\.Upsample\."), ".upsample."),
    (re.compile(r"\.mlp\.fc"), ".mlp.linear"),
)
POSITIONS = "encoder.position_embedding"
FINAL = ("final.weight", "final.bias")
IMG_SIZE = 64  # voxels along each axis that the authors trained on


def alice_encoder(
    state: State, source: str | os.PathLike[str], position_embedding: str | os.PathLike[str] | None, remedy: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The backbone of an authors' file as weights of `HierarchicalTransformer`, and what is to be said of it.

    Args:
        state: backbone and heads under `backbone.` and `head.`, or the backbone by itself with or without `final.*`.
        source: file that it is from, for messages.
        position_embedding: file with the one tensor that the authors' network adds to its tokens; None for zeros.
        remedy: what to do with other files.

    Returns:
        Weights, the file's tables of indices and the position embedding among them; and the record of them.

    Raises:
        FileNotFoundError: if there is no file of the position embedding.
        ValueError: if there is no such network, or not one; a tensor is missing, unknown or of another shape; or biases
            are looked up in an unknown order.
    """
    prefixes = [name.removesuffix(STEM) for name in state if name.endswith(STEM)]
    if len(prefixes) != 1:
        raise ValueError(
            f"{source} holds {len(prefixes)} networks of Alice (names that end in {STEM}), not one: {remedy}"
        )
    (prefix,) = prefixes
    beside = [name for name in state if not name.startswith(prefix) or name.startswith("head.")]
    backbone = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name not in beside}
    unused = [f"{prefix}{name}" for name in backbone if UNUSED.match(name)]
    kept = {_name(name): tensor for name, tensor in backbone.items() if not UNUSED.match(name)}
    try:
        settings = _settings(kept)
    except (KeyError, ValueError) as error:
        reason = f"there is no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{source} holds no network of Alice of the released layout ({reason}): {remedy}") from error
    positions, facts = _positions(position_embedding, settings["embed_dim"])
    kept[POSITIONS] = positions
    settings["img_size"] = [2 * size for size in positions.shape[2:]]
    with torch.device("meta"):  # names and shapes are enough
        own = HierarchicalTransformer(**settings).state_dict()
    missing = [name for name in FINAL if name not in kept and not any(other in kept for other in FINAL)]
    wanted = {name: tensor for name, tensor in own.items() if name not in missing}
    refuse_difference(kept, wanted, f"{source} is no network of Alice as the authors released it", remedy)
    settings["released"] = _released(kept, source)
    text = f"HierarchicalTransformer({', '.join(f'{name}={value}' for name, value in settings.items())})"
    facts = {"network": text, "spatial_dims": 3, "channels": settings["in_channels"], **facts}
    facts |= {"missing": missing} if missing else {}
    return {name: kept[name] for name in wanted}, {**facts, "left_out": [*unused, *beside]}


def _name(name: str) -> str:
    """Ours for one of theirs."""
    for pattern, new in NAMES:
        name = pattern.sub(new, name)
    return name


def _settings(state: State) -> dict[str, Any]:
    """Arguments of the network that has these tensors, but for its image size and order of biases."""
    stages = 1 + max((int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")), default=0)
    tables = [state[f"encoder.layers.{stage}.blocks.0.attn.{BIAS}"] for stage in range(stages)]
    blocks = [{name.split(".")[4] for name in state if name.startswith(f"encoder.layers.{s}.")} for s in range(stages)]
    final = state.get(FINAL[0])
    return {
        "in_channels": state["encoder.patch_embed.proj1.conv1.weight"].shape[1],
        "out_channels": 1 if final is None else final.shape[1],
        "embed_dim": state["encoder.patch_embed.proj2.conv1.weight"].shape[0],
        "depths": [len(numbers) for numbers in blocks],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": [_window(table) for table in tables],
    }


def _window(table: torch.Tensor) -> int:
    """Tokens along each axis of the cubic window that a table of biases is for."""
    return (round(table.shape[0] ** (1 / 3)) + 1) // 2


def _positions(path: str | os.PathLike[str] | None, features: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """The position embedding `(1, features, *grid)`, given or zeros, and the record of it."""
    if path is None:
        grid = [IMG_SIZE // 2] * 3
        return torch.zeros(1, features, *grid), {"position_embedding": "zeros, for that of the authors is in no file"}
    content = safe_load(path)
    tensors = list(content.values()) if isinstance(content, Mapping) else [content]
    tensor = tensors[0] if len(tensors) == 1 else None
    record = {"position_embedding": {"source": Path(path).name, "source_sha256": file_hash(path)}}
    if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
        if tensor.ndim == 5 and tensor.shape[:2] == (1, features):
            return tensor.float(), record
        side = round(tensor.shape[1] ** (1 / 3)) if tensor.ndim == 3 else 0
        if side and tensor.shape == (1, side**3, features):
            return tensor.mT.reshape(1, features, side, side, side).float(), record
    raise ValueError(
        f"{path} is no position embedding: save one tensor of shape (1, {features}, depth, height, width) or of a "
        f"cube's tokens (1, tokens, {features})"
    )


def _released(state: State, source: str | os.PathLike[str]) -> bool:
    """Whether biases are looked up in the authors' order, not in that of Swin; other orders are refused."""
    orders: set[bool] = set()
    for name, index in state.items():
        if not name.endswith(INDEX):
            continue
        window = [_window(state[name.removesuffix(INDEX) + BIAS])] * 3
        usual: Any = WindowAttention(dim=1, num_heads=1, window_size=window).relative_position_index
        found = [order for order, own in ((True, released_index(window)), (False, usual)) if torch.equal(index, own)]
        if not found or not orders.issubset(found):
            raise ValueError(
                f"{source} has another order of biases in {name} than the authors' network and Swin: its features "
                "would differ"
            )
        if len(found) == 1:  # windows of one token have one order
            orders.update(found)
    return True in orders
