"""Load weights into any network, say what became of every tensor, and refuse what does not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from anatomy_ssl.weights.files import canonical, read_state, read_weights, some_of
from anatomy_ssl.weights.matching import INDEX, Matching, counts

__all__ = ["LoadReport", "check_recipe", "load_pretrained", "pretrained"]

logger = logging.getLogger(__name__)

Change = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor; names are the network's, those of `unexpected` the file's.

    Left out are `num_batches_tracked` and `relative_position_index`, in which nothing was learned.

    Attributes:
        path: the file.
        prefix: what the file puts before the network's names, "" for nothing.
        matched: in both with one shape.
        missing: in the network, not in the file.
        unexpected: in the file, not in the network.
        mismatched: in both with different shapes: (name, shape in the file, shape in the network).
        reshaped: likewise, and loaded after inflation or interpolation.
        share_of: "network" or "file": what `share` is a part of.
        gaps: for `share_of` "file", those of `missing` that lie among what was loaded; they count.
    """

    path: str
    prefix: str
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[Change]
    reshaped: list[Change] = field(default_factory=list)
    share_of: str = "network"
    gaps: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> int:
        """Number of tensors that go from the file to the network."""
        return len(self.matched) + len(self.reshaped)

    @property
    def total(self) -> int:
        """Number of the network's tensors, or of the file's under `prefix` and those that it should have."""
        under = [name for name in self.unexpected if name.startswith(self.prefix)]
        return self.loaded + len(self.mismatched) + len(under + self.gaps if self.share_of == "file" else self.missing)

    @property
    def share(self) -> float:
        """Loaded part of the network's tensors, or of the file's under `prefix`, 0 to 1."""
        return self.loaded / max(1, self.total)

    def __str__(self) -> str:
        where = f" under {self.prefix!r}" if self.prefix else ""
        whole = f"the {'encoder' if self.share_of == 'file' else 'network'}'s {self.total} tensors"
        head = f"{self.path}: {self.loaded} of {whole} fit{where} ({self.share:.1%})"
        kinds = {
            "reshaped": [_change(change) for change in self.reshaped],
            "missing in the file": self.missing,
            "other shape": [_change(change) for change in self.mismatched],
            "unused in the file": self.unexpected,
        }
        return "\n".join(
            [head, *(f"  {kind}: {len(names)}: {some_of(names)}" for kind, names in kinds.items() if names)]
        )


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
) -> LoadReport:
    """Load the tensors of a file that fit a network by name and shape, and log what fitted and what did not.

    Args:
        network: changed in place, unless the call raises.
        path: a training checkpoint (weights under `model`), an exported encoder, or a plain state dict; see
            `read_weights`.
        module: name of the part to fill (`swinViT`, `vit`, `encoder`); "" for the whole network.
        prefix: what the file puts before the part's names (`encoder.`, `encoder.backbone.`); None finds it: the one
            with the most tensors that fit. Where the file's names are instead those of one part of the network, they
            are tried there.
        minimum_share: smallest share of the tensors (parameters and buffers, counted) that must be loaded, 0 to 1.
        share_of: "network": of the tensors of the part to fill. "file": of the file's tensors under `prefix`, for
            networks whose encoder is no part of its own (UNet, SegResNet). Layers that the file lacks count against it
            where they stand before the last one that it fills, or in the same top-level part of the network.
        inflate: allow other input channels and 2D weights in a 3D network, see `resize.inflate`.
        interpolate: allow other position grids and windows, see `resize.interpolate_positions` and `interpolate_bias`.
        allow_new_input: load although the input layer stays untrained; else the file has to fill it.

    Returns:
        What was loaded and what was not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the network has no such part, the file cannot be read, several prefixes fit equally well, a grid
            cannot be interpolated, less than `minimum_share` fits, or the input layer does not; nothing is loaded.
    """
    if share_of not in ("network", "file") or not 0 <= minimum_share <= 1:
        raise ValueError(f"share_of is network or file and minimum_share 0 to 1, not {share_of!r} and {minimum_share}")
    part = _part(network, module, path)
    matching = Matching(network, part, read_state(path), inflate, interpolate)
    outer, inner = matching.find_prefix(path) if prefix is None else (prefix, "")
    source = {inner + name.removeprefix(outer): name for name in matching.state if name.startswith(outer)}
    values = {name: matching.value(name, source[name]) for name in matching.own if name in source}
    report = _report(matching, source, values, str(path), (outer, inner), share_of)
    _check_share(report, part, minimum_share)
    if not allow_new_input:
        _check_input(matching, report, inner)
    taken = {name: value for name, value in values.items() if value is not None and not name.endswith(INDEX)}
    part.load_state_dict(taken, strict=False)
    logger.log(logging.INFO if report.share == 1 else logging.WARNING, str(report))
    return report


def pretrained(
    network: nn.Module,
    path: str | os.PathLike[str] | None = None,
    module: str = "",
    prefix: str | None = None,
    minimum_share: float = 0.9,
    share_of: str = "network",
    inflate: bool = False,
    interpolate: bool = False,
    recipe: Mapping[str, Any] | None = None,
    allow_new_input: bool = False,
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
        inflate: allow other input channels and 2D weights in a 3D network.
        interpolate: allow other position grids and windows.
        recipe: see `check_recipe`; None does not check.
        allow_new_input: load although the input layer stays untrained.

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
            check_recipe(path, recipe)
        fitting: dict[str, Any] = {"minimum_share": minimum_share, "share_of": share_of, "inflate": inflate}
        fitting |= {"interpolate": interpolate, "allow_new_input": allow_new_input}
        load_pretrained(network, path, module, prefix, **fitting)
    except (ValueError, OSError) as error:
        logger.error("%s", error)  # MONAI's bundle wraps what happens at construction in messages of its own
        raise
    return network


def check_recipe(path: str | os.PathLike[str], recipe: Mapping[str, Any]) -> None:
    """Refuse to feed an encoder with other crops than it was trained on, which would give plausible, wrong numbers.

    Args:
        path: a file of `ExportEncoder`; files without a record pass.
        recipe: what this run uses, by the names of the record: `crop_size`, `crop_spacing`, `channels`, ...

    Raises:
        ValueError: names the first difference.
    """
    record = read_weights(path)[1]
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


def _report(
    matching: Matching,
    source: Mapping[str, str],
    values: Mapping[str, torch.Tensor | None],
    path: str,
    prefixes: tuple[str, str],
    share_of: str,
) -> LoadReport:
    """Sort the tensors; `source` maps network name -> file name, `values` network name -> tensor or None."""
    matched: list[str] = []
    changes: dict[bool, list[Change]] = {True: [], False: []}  # loaded or not
    for name in filter(counts, values):
        value, tensor = values[name], matching.state[source[name]]
        if value is tensor:
            matched.append(name)
        else:
            changes[value is not None].append((name, tuple(tensor.shape), tuple(matching.own[name].shape)))
    used = {source[name] for name in values}
    outer, inner = prefixes
    loaded = {*matched, *(name for name, _, _ in changes[True])}
    return LoadReport(
        path=path,
        prefix=outer,
        matched=matched,
        missing=[name for name in matching.own if counts(name) and name not in values],
        unexpected=[name for name in matching.state if counts(name) and name not in used],
        mismatched=changes[False],
        reshaped=changes[True],
        share_of=share_of,
        gaps=_gaps([name for name in matching.own if counts(name) and name.startswith(inner)], values, loaded, inner),
    )


def _gaps(names: Sequence[str], present: Container[str], loaded: Container[str], inner: str) -> list[str]:
    """Names that the file lacks, before the last one loaded or in a top-level part with one that was.

    An encoder is registered before its decoder, so that these are no decoder's.
    """
    parts = {name: name.removeprefix(inner).split(".")[0] for name in names}
    begun = {part for name, part in parts.items() if name in loaded} if len(set(parts.values())) > 1 else set()
    last = max((place for place, name in enumerate(names) if name in loaded), default=-1)
    lacking = [(place, name) for place, name in enumerate(names) if name not in present]
    return [name for place, name in lacking if place < last or parts[name] in begun]


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
    other = [_change(change) for change in report.mismatched if change[0] == first]
    if other or first in report.missing:
        raise ValueError(
            f"{report.path} does not fill the input layer {other[0] if other else first}: give inflate: true where "
            f"only its channels differ, or allow_new_input: true to train it anew\n{report}"
        )


def _change(change: Change) -> str:
    """`conv.weight (file 64x1x7, network 64x3x7)`."""
    name, there, here = change
    sizes = ["x".join(map(str, shape)) or "scalar" for shape in (there, here)]
    return f"{name} (file {sizes[0]}, network {sizes[1]})"
