"""Checkpoints that the methods' authors released, and timm's, as encoder files of ours."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DenseNet121
from torch.serialization import safe_globals

from anatomy_ssl.data.atomic import safe_load
from anatomy_ssl.networks.vit import ViTGridEncoder
from anatomy_ssl.weights.files import file_hash, some_of, state_in
from anatomy_ssl.weights.matching import refuse_difference
from anatomy_ssl.weights.record import library_versions, save_encoder
from anatomy_ssl.weights.released_alice import alice_encoder
from anatomy_ssl.weights.resize import inflate
from anatomy_ssl.weights.timm import HEAD_FEATURES, TIMM_EPSILON, check_encoder, from_timm

__all__ = ["import_released"]

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]
Imported = tuple[dict[str, torch.Tensor], dict[str, Any]]
REMEDY = "for other files use anatomy_ssl.weights.pretrained in a config"
ISIMED_HEADS = ("linear_dist.", "linear_bt.", "reg.")
ISIMED_NETWORK: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 1024}
BRANCHES = ("teacher", "student")
PEAC_HEADS = ("head.", "bias", "decoder.", "mlp.", "mlp_local.")
MONAI_EPSILON = 1e-5  # of LayerNorms, unless a record says another
STEM = "patch_embed.proj.weight"


def import_released(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    method: str,
    which: str | None = None,
    channels: int | None = None,
    position_embedding: str | os.PathLike[str] | None = None,
) -> Path:
    """Write an encoder file from a checkpoint that a method's authors released; users bring the file.

    Args:
        source: for "isimed": a state dict of MONAI's `DenseNet121(spatial_dims=3, in_channels=1, out_channels=1024)`,
            or the same under `backbone.` beside heads (`linear_dist`, `linear_bt`, `reg`), which are left out. For
            "peac": a Swin or a ViT in the layout of the original code or of timm, under `teacher` and `student` or by
            itself, with anything before its names (`swin_model.`) and heads beside it, which are left out. For "timm":
            the same without the authors, such as weights of ImageNet or a file of `export_timm`, whose record is kept.
            For "alice": the nnFormer-like network under `backbone.` beside `head.*`, in `teacher` and `student`, or by
            itself; an argparse namespace in the file is read and dropped. `module.` may stand before the names.
        output: file to write, atomically; see `save_encoder`. Its names are those of `DenseNet121`, `SwinEncoder`,
            `ViTGridEncoder` or `HierarchicalTransformer`. The file of a ViT is for `class_token: true` and
            `norm_eps: 1.0e-6`, the last for `released: true`.
        method: isimed, peac, timm or alice.
        which: teacher or student; by default the teacher, if the file has one.
        channels: of the images to come. With 1 the weights of equal input channels are summed, which gives the same
            features. By default 1 for peac, whose authors repeat the grey image, and for timm those of the file.
        position_embedding: for alice: file with the tensor that its network adds to its tokens, `(1, F, *grid)` or
            `(1, T, F)`, and which is not in the authors' file; zeros by default.

    Returns:
        `output` as a path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the method is none of these, the file cannot be read (files with pickled objects are refused),
            has no such branch, or a tensor is missing, unknown or of another shape.
    """
    if method not in LAYOUTS:
        raise ValueError(f"no released checkpoints of {method!r} can be imported; choose {', '.join(LAYOUTS)}")
    if method == "isimed" and (which, channels) != (None, None):
        raise ValueError("files of isimed have one network for one channel: leave which and channels out")
    if method != "alice" and position_embedding is not None:
        raise ValueError(f"files of {method} hold their position embedding, if any: leave position_embedding out")
    with safe_globals([argparse.Namespace] if method == "alice" else []):  # a bag of values, that runs nothing
        content = safe_load(source)
    extra = {"position_embedding": position_embedding} if method == "alice" else {}
    state, facts = LAYOUTS[method](content, source, which, channels, **extra)
    logger.info("took %s", ", ".join(f"{name} {value}" for name, value in facts.items() if name != "left_out"))
    logger.info("left out: %s", some_of(facts.get("left_out", [])) or "nothing")
    origin = {"source": Path(source).name, "source_sha256": file_hash(source)}
    return save_encoder(state, {"method": method, **origin, **facts, "imported_with": library_versions()}, output)


def _isimed(content: Any, source: str | os.PathLike[str], which: str | None, channels: int | None) -> Imported:
    """DenseNet121 alone, or under `backbone.` beside heads."""
    state, heads = state_in(content, source), []
    if any(name.startswith("backbone.") for name in state):
        heads = [name for name in state if name.startswith(ISIMED_HEADS)]
        state = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if name not in heads}
    with torch.device("meta"):  # names and shapes are enough
        network = DenseNet121(**ISIMED_NETWORK)
    refuse_difference(state, network.state_dict(), f"{source} is no DenseNet121 as the authors released it", REMEDY)
    text = f"DenseNet121({', '.join(f'{name}={value}' for name, value in ISIMED_NETWORK.items())})"
    facts = {"released_by": "the authors", "network": text, "channels": ISIMED_NETWORK["in_channels"]}
    return state, {**facts, "left_out": heads}


def _peac(content: Any, source: str | os.PathLike[str], which: str | None, channels: int | None) -> Imported:
    """The Swin or the ViT of a student or teacher; grey images, repeated to the file's channels."""
    branch = _branch(content, source, which)
    state, facts = _encoder(state_in(content, source, branch), source, 1 if channels is None else channels)
    return state, {"released_by": "the authors", **({"branch": branch} if branch else {}), **facts}


def _timm(content: Any, source: str | os.PathLike[str], which: str | None, channels: int | None) -> Imported:
    """The same in a file of anyone, whose own record goes on."""
    branch = _branch(content, source, which)
    state, facts = _encoder(state_in(content, source, branch), source, channels)
    record = content.get("provenance") if isinstance(content, Mapping) else None
    if not isinstance(record, Mapping):
        return state, facts
    if "norm_eps" in facts:  # a ViT of ours
        facts["norm_eps"] = record.get("norm_eps", MONAI_EPSILON)
    return state, {**{name: value for name, value in record.items() if name != "layout"}, **facts}


def _alice(
    content: Any,
    source: str | os.PathLike[str],
    which: str | None,
    channels: int | None,
    position_embedding: str | os.PathLike[str] | None,
) -> Imported:
    """The encoder and decoder of a student or teacher."""
    if channels is not None:
        raise ValueError(
            "files of alice keep their channels: leave channels out, and give inflate where they are loaded"
        )
    branch = _branch(content, source, which)
    state, facts = alice_encoder(state_in(content, source, branch), source, position_embedding, REMEDY)
    return state, {"released_by": "the authors", **({"branch": branch} if branch else {}), **facts}


def _branch(content: Any, source: str | os.PathLike[str], which: str | None) -> str | None:
    """Student or teacher; None where the file has neither."""
    if which not in (None, *BRANCHES):
        raise ValueError(f"which is {' or '.join(BRANCHES)}, not {which!r}")
    there = [name for name in BRANCHES if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)]
    if which is not None and which not in there:
        raise ValueError(f"{source} has no {which}, but {', '.join(there) or 'one network alone'}: leave which out")
    return which or next(iter(there), None)


def _encoder(state: State, source: str | os.PathLike[str], channels: int | None) -> Imported:
    """The one Swin or ViT of a state dict under our names, and what is to be said of it."""
    prefixes = [name.removesuffix(STEM) for name in state if name.endswith(STEM)]
    if len(prefixes) != 1:
        raise ValueError(f"{source} holds {len(prefixes)} Swins or ViTs (names that end in {STEM}), not one: {REMEDY}")
    (prefix,) = prefixes
    # beside a prefix all is heads, without one only what has their names
    heads = [name for name in state if not name.startswith(prefix) or name.startswith(f"{prefix}head.")]
    heads += [name for name in state if not prefix and name.startswith(PEAC_HEADS) and name not in heads]
    kept = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name not in heads}
    stem = kept[STEM]
    kept[STEM] = _with_channels(stem, channels, source)
    encoder = from_timm(kept)
    network, text = check_encoder(encoder, source, REMEDY)
    facts = {"network": text, "spatial_dims": 2, "cell_size": network.cell_size}
    if isinstance(network, ViTGridEncoder):
        rows, columns = network.grid_size
        if rows != columns:
            raise ValueError(f"{source} has positions of {rows * columns} patches, which are no square: {REMEDY}")
        if network.num_features % HEAD_FEATURES:  # not heads of that size: how many it has is nowhere said
            raise ValueError(f"{source} has {network.num_features} features, no multiple of {HEAD_FEATURES}: {REMEDY}")
        facts |= {"grid_size": [rows, columns], "norm_eps": TIMM_EPSILON}
    return encoder, {**facts, "channels": kept[STEM].shape[1], "source_channels": stem.shape[1], "left_out": heads}


def _with_channels(stem: torch.Tensor, channels: int | None, source: str | os.PathLike[str]) -> torch.Tensor:
    """The input layer for other, equal channels; see `resize.inflate`."""
    if channels is None or stem.ndim != 4:
        return stem
    there = stem.shape[1]
    if channels < 1 or (channels not in (1, there) and there != 1):
        raise ValueError(f"{source} is for {there} channels and cannot be brought to {channels}: give 1 or {there}")
    return inflate(stem, (stem.shape[0], channels, *stem.shape[2:]))


LAYOUTS: dict[str, Callable[..., Imported]] = {
    "isimed": _isimed,
    "peac": _peac,
    "timm": _timm,
    "alice": _alice,
}
