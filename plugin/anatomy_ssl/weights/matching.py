"""Which tensor of a file goes to which of a network."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping

import torch
from monai.networks.nets.swin_unetr import PatchMerging
from torch import nn

from anatomy_ssl.weights.files import some_of
from anatomy_ssl.weights.resize import BIAS, POSITIONS, resizable, resize, spatial_dims

__all__ = ["Matching", "counts", "refuse_difference"]

INDEX = "relative_position_index"  # follows from the window: the network's own stays
MASK = "attn_mask"  # follows from the size of the images
BOOKKEEPING = (INDEX, MASK, "num_batches_tracked")
UNUSED = "cross_attn."  # MONAI's ViT has it in each block and never calls it; 1.5.1 has more of it than 1.6.1
MERGING = re.compile(r"\blayers\.(\d+)(?=\.downsample\.)")
STAGE = re.compile(r"\blayers\.(\d+)\.")
State = Mapping[str, torch.Tensor]


def _monai_names(state: State, own: State) -> State:
    """The file's tensors under MONAI's names for a transformer, where it has those of the original code or of timm.

    Such files are timm's, MONAI's own self-supervised Swin (`model_swinvit.pt`), and for the layers of
    `SwinTransformer`, which are `layers1.0` to `layers4.0`, those of `SwinEncoder`.
    """
    if not any(".mlp.fc1." in name for name in own) and any(".mlp.linear1." in name for name in own):
        renamed = {".mlp.fc1.": ".mlp.linear1.", ".mlp.fc2.": ".mlp.linear2."}
        state = {_replaced(name, renamed): tensor for name, tensor in state.items()}
    first = {int(found[1]) for name in state if (found := MERGING.search(name))}
    if first and 0 not in first and any("layers.0.downsample." in name or "layers1.0." in name for name in own):
        # timm merges at the beginning of a stage, not at the end of the one before
        state = {MERGING.sub(lambda found: f"layers.{int(found[1]) - 1}", n): tensor for n, tensor in state.items()}
    if any("layers1.0.blocks." in name for name in own):
        state = {STAGE.sub(lambda found: f"layers{int(found[1]) + 1}.0.", n): tensor for n, tensor in state.items()}
    return state


def _replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def counts(name: str) -> bool:
    """Whether something was learned in a tensor: not in counters, tables of indices, and ViT's cross-attention."""
    return not name.endswith(BOOKKEEPING) and UNUSED not in name


def refuse_difference(state: State, own: State, subject: str, remedy: str) -> None:
    """Refuse tensors whose names and shapes are not exactly a network's.

    Args:
        state: from a file.
        own: the network's.
        subject: beginning of the message, `FILE is no NETWORK`.
        remedy: its end.

    Raises:
        ValueError: names what is missing, unknown or of another shape.
    """
    kinds = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [name for name in own if name in state and state[name].shape != own[name].shape],
    }
    wrong = [f"{len(names)} {kind} ({some_of(names)})" for kind, names in kinds.items() if names]
    if wrong:
        raise ValueError(f"{subject}: {'; '.join(wrong)}; {remedy}")


class Matching:
    """A file's tensors beside those of a network.

    Args:
        network: the whole network.
        part: the part of it to fill, maybe the network itself.
        state: the file's tensors.
        inflate: see `loading.load_pretrained`.
        interpolate: likewise.
    """

    def __init__(self, network: nn.Module, part: nn.Module, state: State, inflate: bool, interpolate: bool) -> None:
        self.network, self.part, self.own = network, part, part.state_dict()
        self.state = _monai_names(state, self.own)
        self.original_merging = any(STAGE.search(name) for name in state)
        self.inflate, self.interpolate = inflate, interpolate
        self.dims = spatial_dims(state)
        self.same_dims = None in (self.dims, spatial_dims(self.own)) or self.dims == spatial_dims(self.own)

    def find_prefix(self, path: str | os.PathLike[str]) -> tuple[str, str]:
        """Find what to take from the file's names, or to put before them, so that most tensors fit.

        Returns:
            What the file puts before the network's names, and what the network puts before the file's; one of them or
            both are "".

        Raises:
            ValueError: names the places, if several fit equally well.
        """
        found: Counter[tuple[str, str]] = Counter()
        for name in filter(counts, self.state):
            found.update((prefix, "") for prefix, rest in _splits(name) if self.may_fit(rest, name))
        for name in filter(counts, self.own):
            found.update(("", prefix) for prefix, rest in _splits(name) if prefix and self.may_fit(name, rest))
        most = max(found.values(), default=0)
        best = [pair for pair, count in found.items() if count == most]
        if not best or ("", "") in best:
            return "", ""
        if len(best) > 1:
            places = some_of([f"file {outer!r}" if outer else f"network {inner!r}" for outer, inner in best])
            raise ValueError(f"{path} fits equally well at several places ({places}): give prefix, or module")
        return best[0]

    def check_merging(self, path: str | os.PathLike[str]) -> None:
        """Refuse to feed a layer that merges patches in the order of MONAI's first versions with weights for another.

        Raises:
            ValueError: if the network has such layers in 3D (in 2D there is one order) and the file `SwinEncoder`'s or
                timm's.
        """
        first = [name for name, layer in self.part.named_modules() if type(layer) is PatchMerging]
        if self.original_merging and first and self.dims == 3:
            raise ValueError(
                f"{path} is of a network that merges patches in another order than {first[0]}: build "
                "SwinUNETR with downsample: mergingv2 and patch_norm: true"
            )

    def may_fit(self, name: str, source: str) -> bool:
        """Whether the file's `source` fits the network's `name`, as far as names and shapes tell."""
        if name not in self.own or source not in self.state:
            return False
        there, here = tuple(self.state[source].shape), tuple(self.own[name].shape)
        return self._equal(name, source) or resizable(name, there, here, self.inflate, self.interpolate)

    def value(self, name: str, source: str) -> torch.Tensor | None:
        """The file's `source` in the shape of the network's `name`, the tensor itself if it has it, None if it cannot.

        Raises:
            ValueError: if a grid cannot be interpolated, or a table of biases has another order.
        """
        tensor = self.state[source]
        if self._equal(name, source):
            self._check_order(name, source)
            return tensor
        return resize(self.network, self.part, name, tensor, self.dims, self.inflate, self.interpolate)

    def _equal(self, name: str, source: str) -> bool:
        """One shape; an 8 x 8 grid has as many entries as a 4 x 4 x 4 one, and is none."""
        grid = name.endswith((POSITIONS, BIAS))
        return self.state[source].shape == self.own[name].shape and (self.same_dims or not grid)

    def _check_order(self, name: str, source: str) -> None:
        """Refuse a table of biases whose file looks them up in another order than the network does."""
        if not name.endswith(BIAS):
            return
        ours, theirs = (self._index(names, of) for names, of in ((self.own, name), (self.state, source)))
        if ours is not None and theirs is not None and not torch.equal(ours, theirs.to(ours)):
            raise ValueError(
                f"{name} has the network's size, but the file's {INDEX} has another order: build the network with the "
                "window that the file was made with"
            )

    @staticmethod
    def _index(tensors: State, name: str) -> torch.Tensor | None:
        return tensors.get(name.removesuffix(BIAS) + INDEX)


def _splits(name: str) -> list[tuple[str, str]]:
    """`a.b.c` as ("", a.b.c), (a., b.c), (a.b., c)."""
    parts = name.split(".")
    return [("".join(f"{part}." for part in parts[:cut]), ".".join(parts[cut:])) for cut in range(len(parts))]
