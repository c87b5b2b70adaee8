"""What became of every tensor of a file and of a network."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch

from anatomy_ssl.weights.files import some_of
from anatomy_ssl.weights.matching import Matching, counts

__all__ = ["LoadReport", "describe", "sort_tensors"]

Change = tuple[str, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor; names are the network's, those of `unexpected` the file's.

    Left out is that in which nothing was learned: `num_batches_tracked`, `relative_position_index`, ViT's `cross_attn`.

    Attributes:
        path: the file.
        prefix: what the file puts before the network's names, "" for nothing.
        matched: in both with one shape.
        missing: in the network, not in the file.
        unexpected: in the file, not in the network.
        mismatched: in both with different shapes: (name, shape in the file, shape in the network).
        reshaped: likewise, and loaded after inflation or interpolation.
        share_of: "network" or "file": what `share` is a part of.
        gaps: those of `missing` that lie among what was loaded; for `share_of` "file" they count.
        surplus: those of `unexpected` in a part of the network that was loaded, such as further blocks of a deeper one;
            for `share_of` "network" they count.
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
    surplus: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> int:
        """Number of tensors that go from the file to the network."""
        return len(self.matched) + len(self.reshaped)

    @property
    def unused(self) -> list[str]:
        """Those of `unexpected` under `prefix`: beside what was loaded, not a head of the file's own training."""
        return [name for name in self.unexpected if name.startswith(self.prefix)]

    @property
    def total(self) -> int:
        """Number of the network's tensors and the surplus, or of the file's under `prefix` and the gaps."""
        rest = self.unused + self.gaps if self.share_of == "file" else self.missing + self.surplus
        return self.loaded + len(self.mismatched) + len(rest)

    @property
    def share(self) -> float:
        """Loaded part of the network's tensors, or of the file's under `prefix`, 0 to 1."""
        return self.loaded / max(1, self.total)

    def __str__(self) -> str:
        where = f" under {self.prefix!r}" if self.prefix else ""
        whole = f"the {'encoder' if self.share_of == 'file' else 'network'}'s {self.total} tensors"
        if self.share_of == "network" and self.surplus:
            whole = f"{self.total} tensors, {len(self.surplus)} of them layers that the network lacks,"
        head = f"{self.path}: {self.loaded} of {whole} fit{where} ({self.share:.1%})"
        kinds = {
            "reshaped": [describe(change) for change in self.reshaped],
            "missing in the file": self.missing,
            "other shape": [describe(change) for change in self.mismatched],
            "unused in the file": self.unexpected,
        }
        return "\n".join(
            [head, *(f"  {kind}: {len(names)}: {some_of(names)}" for kind, names in kinds.items() if names)]
        )


def describe(change: Change) -> str:
    """`conv.weight (file 64x1x7, network 64x3x7)`."""
    name, there, here = change
    sizes = ["x".join(map(str, shape)) or "scalar" for shape in (there, here)]
    return f"{name} (file {sizes[0]}, network {sizes[1]})"


def sort_tensors(
    matching: Matching,
    source: Mapping[str, str],
    values: Mapping[str, torch.Tensor | None],
    path: str,
    prefixes: tuple[str, str],
    share_of: str,
) -> LoadReport:
    """Sort the tensors.

    Args:
        matching: file and network.
        source: network name -> file name.
        values: network name -> tensor to load, None where it cannot be.
        path: the file.
        prefixes: see `Matching.find_prefix`.
        share_of: see `loading.load_pretrained`.
    """
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
    unexpected = [name for name in matching.state if counts(name) and name not in used]
    return LoadReport(
        path=path,
        prefix=outer,
        matched=matched,
        missing=[name for name in matching.own if counts(name) and name not in values],
        unexpected=unexpected,
        mismatched=changes[False],
        reshaped=changes[True],
        share_of=share_of,
        gaps=_gaps([name for name in matching.own if counts(name) and name.startswith(inner)], values, loaded, inner),
        surplus=_surplus([name for name in unexpected if name.startswith(outer)], {source[n] for n in loaded}, outer),
    )


def _gaps(names: Sequence[str], present: Container[str], loaded: Set[str], inner: str) -> list[str]:
    """Names that the file lacks, before the last one loaded or in a top-level part with one that was.

    An encoder is registered before its decoder, so that these are no decoder's. In UNet, the bottom ends the encoder:
    it lies in the most `submodule`s.
    """
    begun = _begun(loaded, inner) if len(_begun(names, inner)) > 1 else set()
    bottom = max((name.count("submodule.") for name in names), default=0) or None
    ends = [place for place, name in enumerate(names) if name in loaded or name.count("submodule.") == bottom]
    lacking = [(place, name) for place, name in enumerate(names) if name not in present]
    return [name for place, name in lacking if place <= max(ends, default=-1) or _top(name, inner) in begun]


def _surplus(unexpected: Sequence[str], loaded: Set[str], outer: str) -> list[str]:
    """Names of the file that the network lacks, in a top-level part with one that was loaded.

    Where all is in one top-level part (UNet's `model`), they may be a decoder's.
    """
    begun = _begun(loaded, outer)
    one = len(begun | _begun(unexpected, outer)) == 1
    return [] if one else [name for name in unexpected if _top(name, outer) in begun]


def _begun(names: Iterable[str], prefix: str) -> set[str]:
    """Top-level parts of these names under a prefix."""
    return {_top(name, prefix) for name in names}


def _top(name: str, prefix: str) -> str:
    """`b` of `a.b.c` under `a.`."""
    return name.removeprefix(prefix).split(".")[0]
