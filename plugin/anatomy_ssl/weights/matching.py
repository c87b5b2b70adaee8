"""Which tensor of a file goes to which of a network."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn

from anatomy_ssl.weights.files import some_of
from anatomy_ssl.weights.resize import BIAS, POSITIONS, resizable, resize, spatial_dims

__all__ = ["Matching", "counts"]

INDEX = "relative_position_index"  # follows from the window: the network's own stays
BOOKKEEPING = (INDEX, "num_batches_tracked")
UNUSED = "cross_attn."  # MONAI's ViT has it in each block and never calls it; 1.5.1 has more of it than 1.6.1
State = Mapping[str, torch.Tensor]


def _monai_names(state: State, own: State) -> State:
    """The file's tensors with MONAI's names of a transformer's MLP, where it has those of the original code.

    timm's files have them, and MONAI's own self-supervised Swin (`model_swinvit.pt`).
    """
    if any(".mlp.fc1." in name for name in own) or not any(".mlp.linear1." in name for name in own):
        return state
    renamed = {".mlp.fc1.": ".mlp.linear1.", ".mlp.fc2.": ".mlp.linear2."}
    return {_replaced(name, renamed): tensor for name, tensor in state.items()}


def _replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def counts(name: str) -> bool:
    """Whether something was learned in a tensor: not in counters, tables of indices, and ViT's cross-attention."""
    return not name.endswith(BOOKKEEPING) and UNUSED not in name


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
