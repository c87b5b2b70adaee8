"""Weights in another shape: more or fewer input channels, a third dimension, other position grids and windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["inflate", "interpolate_bias", "interpolate_positions", "resizable", "resize", "spatial_dims"]

Shape = tuple[int, ...]
POSITIONS, BIAS = "position_embeddings", "relative_position_bias_table"  # MONAI's names
MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


def inflate(weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Bring a convolution's weight to other input channels, to 3D, or both, without changing what it answers.

    One channel to N: repeated and divided by N, so that N equal channels give the response of the one. N to one:
    summed. 2D to 3D: repeated along a new last axis and divided by its length, so that an image that does not change
    along this axis gives the response of its slice (Carreira & Zisserman 2017, section 2.4). The last axis runs from
    slice to slice in MONAI's RAS order.

    Args:
        weight: `(O, I, *k)`.
        shape: wanted, `(O, I', *k)` or `(O, I', *k, n)`, with I' = I, or one of them 1.

    Returns:
        The weight in that shape.

    Raises:
        ValueError: if the shapes differ by more than that.
    """
    there, here = tuple(weight.shape), tuple(shape)
    if not _inflatable(there, here):
        raise ValueError(f"a weight of shape {there} cannot be inflated to {here}")
    if there[1] > here[1]:
        weight = weight.sum(dim=1, keepdim=True)
    elif there[1] < here[1]:
        weight = weight.expand(-1, here[1], *weight.shape[2:]) / here[1]
    if len(here) > len(there):
        weight = weight.unsqueeze(-1).expand(here) / here[-1]
    return weight.contiguous()


def interpolate_positions(embeddings: torch.Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> torch.Tensor:
    """Resample absolute position embeddings of patches, whose centres divide the image evenly.

    Args:
        embeddings: `(1, T, C)`, T the product of `grid`, the last axis running fastest.
        grid: patches along each axis, 2 or 3 axes.
        new_grid: wanted patches; with one axis more, the values are repeated along it.

    Returns:
        `(1, T', C)`; linear in 3D, bicubic in 2D, bit-equal where the grids are.
    """
    values = embeddings.reshape(*grid, embeddings.shape[-1])
    return _resample(values, new_grid, align_corners=False).reshape(1, -1, embeddings.shape[-1])


def interpolate_bias(table: torch.Tensor, window: Sequence[int], new_window: Sequence[int]) -> torch.Tensor:
    """Resample a table of relative position biases; offset zero and the largest offsets stay where they are.

    Args:
        table: `(T, heads)`, T the product of 2 w - 1 over the window's axes, the last axis running fastest (as in
            MONAI's `WindowAttention`).
        window: tokens along each axis of the window, 2 or 3 axes.
        new_window: wanted; with one axis more, the values are repeated along it.

    Returns:
        `(T', heads)`; linear in 3D, bicubic in 2D, bit-equal where the windows are.
    """
    values = table.reshape(*(2 * size - 1 for size in window), table.shape[-1])
    return _resample(values, [2 * size - 1 for size in new_window], align_corners=True).reshape(-1, table.shape[-1])


def resizable(name: str, there: Shape, here: Shape, inflated: bool, interpolated: bool) -> bool:
    """Whether the shapes in file and network differ only as `resize` can mend, by name and shape alone."""
    if interpolated and name.endswith((POSITIONS, BIAS)):
        return len(there) == len(here) and there[-1] == here[-1]
    return inflated and _inflatable(there, here)


def resize(
    network: nn.Module,
    part: nn.Module,
    name: str,
    tensor: torch.Tensor,
    dims: int | None,
    inflated: bool,
    interpolated: bool,
) -> torch.Tensor | None:
    """Bring a tensor of a file into the network's shape.

    Args:
        network: the whole network; it may keep the grid of patches (UNETR does).
        part: the part of it that is filled.
        name: in `part`.
        tensor: from the file.
        dims: spatial axes of the file's network, None where its weights do not tell.
        inflated: allow `inflate`, for convolutions without groups that are not transposed.
        interpolated: allow `interpolate_positions` and `interpolate_bias`; with `inflated` also from 2D to 3D.

    Returns:
        The tensor in the network's shape, or None if it is none of these cases.

    Raises:
        ValueError: if a grid or window of the file is no square or cube, the only ones that its table tells.
    """
    place, _, leaf = name.rpartition(".")
    layer = part.get_submodule(place)
    shape = tuple(getattr(layer, leaf).shape)
    if not resizable(name, tuple(tensor.shape), shape, inflated, interpolated):
        return None
    if leaf == BIAS:
        window = tuple(int(size) for size in layer.window_size)  # type: ignore[union-attr]
        old = dims or len(window)
        if not _may_change(old, len(window), inflated):
            return None
        side = _side(tensor.shape[0], old, name)
        return interpolate_bias(tensor, [(side + 1) // 2] * old, window)
    if leaf == POSITIONS:
        grid = _grid(network, shape[1], spatial_dims(network.state_dict()) or dims, name)
        old = dims or len(grid)
        if not _may_change(old, len(grid), inflated):
            return None
        return interpolate_positions(tensor, [_side(tensor.shape[1], old, name)] * old, grid)
    if isinstance(layer, _ConvNd) and not layer.transposed and layer.groups == 1:
        return inflate(tensor, shape)
    return None


def spatial_dims(state: Mapping[str, torch.Tensor]) -> int | None:
    """Spatial axes of a network, from its convolutions; None without any."""
    return max((tensor.ndim - 2 for tensor in state.values() if tensor.ndim >= 4), default=None)


def _inflatable(there: Shape, here: Shape) -> bool:
    """Whether two shapes of convolution weights differ by channels (one of them 1) or a third dimension only."""
    if len(there) < 4 or len(here) - len(there) not in (0, 1) or (len(here) > len(there) and len(here) != 5):
        return False
    channels = there[1] == here[1] or 1 in (there[1], here[1])
    return there[0] == here[0] and channels and there[2:] == here[2 : len(there)]


def _resample(values: torch.Tensor, size: Sequence[int], align_corners: bool) -> torch.Tensor:
    """Values `(*grid, C)` on another grid, with the last axis repeated where it is new."""
    dims, size = values.ndim - 1, tuple(size)
    if tuple(values.shape[:-1]) != size[:dims]:
        options: dict[str, Any] = {"mode": MODES[dims], "align_corners": align_corners}
        moved = F.interpolate(values.movedim(-1, 0)[None].float(), size=size[:dims], **options)
        values = moved[0].movedim(0, -1).to(values.dtype)
    if len(size) > dims:
        values = values.unsqueeze(-2).expand(*size, values.shape[-1])
    return values


def _may_change(old: int, new: int, inflated: bool) -> bool:
    """The same number of axes, or 2D to 3D where that is wanted."""
    return old == new or (inflated and (old, new) == (2, 3))


def _grid(network: nn.Module, tokens: int, dims: int | None, name: str) -> tuple[int, ...]:
    """Patches along each axis of the network: what it keeps, else a square or cube."""
    kept = getattr(network, "feat_size", None)  # UNETR's
    if isinstance(kept, (tuple, list)) and math.prod(kept) == tokens:
        return tuple(int(size) for size in kept)
    if dims is None:
        raise ValueError(f"whether {name} is of a 2D or a 3D network cannot be told: give a ViT with proj_type conv")
    return (_side(tokens, dims, name),) * dims


def _side(count: int, dims: int, name: str) -> int:
    """The side of a square or cube of `count` entries."""
    side = round(count ** (1 / dims))
    if side**dims != count or (name.endswith(BIAS) and side % 2 == 0):
        kind = {1: "line", 2: "square", 3: "cube"}.get(dims, "cube")
        raise ValueError(
            f"{name} has {count} entries, which are no {kind} of {'a window' if name.endswith(BIAS) else 'patches'}: "
            "only square and cubic grids can be interpolated; build the network with the file's own size"
        )
    return side
