"""Load weights into any network, say what became of every tensor, and refuse what does not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from anatomy_ssl.switches import switch
from anatomy_ssl.weights.files import canonical, read_state, read_weights, some_of, unusable
from anatomy_ssl.weights.matching import INDEX, Matching
from anatomy_ssl.weights.report import LoadReport, describe, sort_tensors

__all__ = ["check_recipe", "load_pretrained", "pretrained"]

logger = logging.getLogger(__name__)


def load_pretrained(
    network: nn.Module,
    path: str | os.PathLike[str],
    module: str = "",
    prefix: str | None = None,
    minimum_share: float = 0.9,
    share_of: str = "network",
    inflate: bool = False,
    interpolate: bool = False,
    allow_new_input: bool = False,
    key: str | None = None,
) -> LoadReport:
    """Load the tensors of a file that fit a network by name and shape, and log what fitted and what did not.

    Args:
        network: changed in place, unless the call raises.
        path: a training checkpoint (weights under `model`), an exported encoder, or a plain state dict; see
            `read_weights`.
        module: name of the part to fill (`swinViT`, `vit`, `encoder`); "" for the whole network.
        prefix: what the file puts before the part's names (`encoder`, `encoder.backbone.`); None finds it: the one
            with the most tensors that fit. Where the file's names are instead those of one part of the network, they
            are tried there.
        minimum_share: smallest share of the tensors (parameters and buffers, counted) that must be loaded, 0 to 1.
        share_of: "network": of the tensors of the part to fill. Layers that the file has besides count against it where
            they belong to a top-level part that it fills (a ResNet34 is no ResNet18). "file": of the file's tensors
            under `prefix`, for networks whose encoder is no part of its own (UNet, SegResNet). Layers that the file
            lacks count against it where they stand before the last one that it fills, or in the same top-level part
            of the network, or in UNet's path down.
        inflate: allow other input channels and 2D weights in a 3D network, see `resize.inflate`.
        interpolate: allow other position grids and windows, see `resize.interpolate_positions` and `interpolate_bias`.
        allow_new_input: load although the input layer stays untrained; else the file has to fill it.
        key: the file's entry that holds the state dict, see `read_weights`.

    Returns:
        What was loaded and what was not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the network has no such part, the file cannot be read, several prefixes fit equally well, a grid
            cannot be interpolated, a tensor is not finite or has integers for floating point numbers, less than
            `minimum_share` fits, or the input layer does not; nothing is loaded.
    """
    if share_of not in ("network", "file") or not 0 <= minimum_share <= 1:
        raise ValueError(f"share_of is network or file and minimum_share 0 to 1, not {share_of!r} and {minimum_share}")
    part = _part(network, module, path)
    matching = Matching(network, part, read_state(path, key), inflate, interpolate)
    matching.check_merging(path)
    outer, inner = matching.find_prefix(path) if prefix is None else (_dotted(prefix), "")
    source = {inner + name.removeprefix(outer): name for name in matching.state if name.startswith(outer)}
    _check_values(matching, source, path)
    values = {name: matching.value(name, source[name]) for name in matching.own if name in source}
    report = sort_tensors(matching, source, values, str(path), (outer, inner), share_of)
    _check_share(report, part, minimum_share)
    if not allow_new_input:
        _check_input(matching, report, inner)
    taken = {name: value for name, value in values.items() if value is not None and not name.endswith(INDEX)}
    part.load_state_dict(taken, strict=False)
    logger.log(logging.INFO if report.share == 1 and not report.unused else logging.WARNING, str(report))
    return report


def pretrained(
    network: nn.Module,
    path: str | os.PathLike[str] | None = None,
    module: str = "",
    prefix: str | None = None,
    minimum_share: float = 0.9,
    share_of: str = "network",
    inflate: bool | str = False,
    interpolate: bool | str = False,
    recipe: Mapping[str, Any] | None = None,
    allow_new_input: bool | str = False,
    key: str | None = None,
) -> nn.Module:
    """Build a network with weights from a file: for `_target_` around a network in a config.

    The weights are there when the network is built, so that whatever loads later (MONAI Label, `--resume`) has the
    last word.

    Args:
        network: the network to fill.
        path: the file; None or "" leaves the network as it is.
        module: name of the part to fill (`swinViT`, `vit`, `encoder`); "" for the whole network.
        prefix: see `load_pretrained`, also for the following.
        minimum_share: smallest share of the tensors that must be loaded.
        share_of: "network" (the part to fill) or "file".
        inflate: allow other input channels and 2D weights in a 3D network; true and false may be words, also below.
        interpolate: allow other position grids and windows.
        recipe: see `check_recipe`; None does not check.
        allow_new_input: load although the input layer stays untrained.
        key: the file's entry that holds the state dict (`teacher`), where it is no usual one.

    Returns:
        The same network.

    Raises:
        FileNotFoundError: see `load_pretrained`.
        ValueError: see `load_pretrained` and `check_recipe`.
    """
    if path is None or str(path) == "":
        return network
    try:
        if recipe is not None:
            check_recipe(path, recipe, key)
        words = {"inflate": inflate, "interpolate": interpolate, "allow_new_input": allow_new_input}
        allowed = {name: switch(value, name) for name, value in words.items()}
        load_pretrained(network, path, module, prefix, minimum_share, share_of, **allowed, key=key)
    except (ValueError, OSError) as error:
        logger.error("%s", error)  # MONAI's bundle wraps what happens at construction in messages of its own
        raise
    return network


def check_recipe(path: str | os.PathLike[str], recipe: Mapping[str, Any], key: str | None = None) -> None:
    """Refuse to feed an encoder with other crops than it was trained on, which would give plausible, wrong numbers.

    Args:
        path: a file of `ExportEncoder`; files without a record pass.
        recipe: what this run uses, by the names of the record: `crop_size`, `crop_spacing`, `channels`, ...
        key: see `read_weights`.

    Raises:
        ValueError: names the first difference.
    """
    record = read_weights(path, key)[1]
    for name, value in recipe.items():
        if name in record and canonical(record[name]) != canonical(value):
            # MONAI's command line drops a plain None
            wanted = "'$None'" if record[name] is None else f'"{record[name]}"'
            raise ValueError(
                f"{path} was trained with {name} {record[name]}, this run has {value}: give --{name} {wanted}, or the "
                "overlay that it was trained with"
            )


def _part(network: nn.Module, module: str, path: str | os.PathLike[str]) -> nn.Module:
    """The part to fill."""
    try:
        return network.get_submodule(module)
    except AttributeError as error:
        names = some_of([name for name, _ in network.named_children()])
        raise ValueError(
            f"{type(network).__name__} has no part {module!r} to load {path} into; its parts are {names}"
        ) from error


def _dotted(prefix: str) -> str:
    """With the dot that ends a prefix, unless there is none."""
    return f"{prefix.removesuffix('.')}." if prefix else ""


def _check_values(matching: Matching, source: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Refuse tensors that fit by shape and are no weights."""
    fitting = {name: matching.state[there] for name, there in source.items() if matching.may_fit(name, there)}
    if found := unusable(fitting, matching.own):
        raise ValueError(f"{path} has weights that cannot be used: {some_of(found)}: train or export them again")


def _check_share(report: LoadReport, part: nn.Module, minimum_share: float) -> None:
    """Refuse a file of which, or of whose network, too little is loaded."""
    if report.loaded and report.share >= minimum_share:
        return
    fit = f"{report.path} fits {report.share:.1%} of {type(part).__name__}"
    if report.share_of == "file":
        fit = f"{type(part).__name__} takes {report.share:.1%} of the encoder in {report.path}"
    raise ValueError(
        f"{fit}, under the minimum of {minimum_share:.1%}: build the network that the file was made with, give "
        f"prefix or module, or lower minimum_share\n{report}"
    )


def _check_input(matching: Matching, report: LoadReport, inner: str) -> None:
    """Refuse a file that leaves the input layer untrained: a share would not show it."""
    weights = [name for name in matching.own if name.startswith(inner) and name.endswith("weight")]
    first = next((name for name in weights if matching.own[name].ndim > 1), None)
    other = [describe(change) for change in report.mismatched if change[0] == first]
    if other or first in report.missing:
        raise ValueError(
            f"{report.path} does not fill the input layer {other[0] if other else first}: give inflate: true where "
            f"only its channels differ, or allow_new_input: true to train it anew\n{report}"
        )
