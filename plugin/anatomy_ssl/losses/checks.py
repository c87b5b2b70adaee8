"""What the losses ask of the tensors that they are given."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def float_rows(x: Tensor, name: str) -> Tensor:
    """Return `x` as a plain float32 tensor, or float64 where it is that already.

    Args:
        x: `(N, F)` floating tensor. Half precision is widened because sums of squares lose their small differences in
            it; a MetaTensor loses its metadata, which collectives cannot carry.
        name: the argument's name, for the message.

    Raises:
        ValueError: `x` is not a floating tensor of shape `(N, F)` with F > 0.
    """
    if x.ndim != 2 or x.shape[1] == 0 or not x.is_floating_point():
        raise ValueError(f"`{name}` has to be a floating tensor (N, F), got {tuple(x.shape)} of {x.dtype}.")
    return x.as_subclass(Tensor).to(torch.promote_types(x.dtype, torch.float32))


def paired_views(view_1: Tensor, view_2: Tensor) -> tuple[Tensor, Tensor]:
    """Return two views of equal shape `(N, F)` in one dtype of at least float32.

    Raises:
        ValueError: the views are not floating tensors of one shape `(N, F)`.
    """
    view_1, view_2 = float_rows(view_1, "view_1"), float_rows(view_2, "view_2")
    if view_1.shape != view_2.shape:
        raise ValueError(
            f"`view_1` {tuple(view_1.shape)} and `view_2` {tuple(view_2.shape)} have to be one shape: row i of both is "
            "the same crop."
        )
    dtype = torch.promote_types(view_1.dtype, view_2.dtype)
    return view_1.to(dtype), view_2.to(dtype)


def position_rows(position: Tensor, like: Tensor, name: str) -> Tensor:
    """Return crop centres as plain rows in the dtype of the rows that they belong to.

    Args:
        position: `(N, D)` crop centres.
        like: the `(N, F)` rows that the centres belong to.
        name: the name of `like`, for the message.

    Raises:
        ValueError: not one position for each row, or a position that is NaN or infinite.
    """
    if position.ndim != 2 or len(position) != len(like) or position.shape[1] == 0:
        raise ValueError(
            f"`position` has to be (N, D) with one centre for each of the {len(like)} rows of `{name}`, "
            f"got {tuple(position.shape)}."
        )
    position = position.as_subclass(Tensor).to(like.dtype)
    # Waits for the device, for far less than a training step; a NaN that came from an affine is hard to find later.
    if not bool(torch.isfinite(position).all()):
        raise ValueError("`position` holds NaN or infinite values; check the affines of the batch's volumes.")
    return position


def positive(value: float, name: str) -> float:
    """Return `value` as a float.

    Raises:
        ValueError: `value` is not a positive finite number.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` has to be a positive finite number, got {value}.")
    return float(value)
