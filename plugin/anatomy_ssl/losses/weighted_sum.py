"""A weighted sum of named losses over named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class WeightedSumLoss(nn.Module):
    """Sum of weighted loss terms, each called with tensors picked by name from the network's outputs and the targets.

    The only loss that sees dictionaries. It returns a plain scalar, as MONAI's SupervisedTrainer expects
    (`loss_function(pred, label).mean()`).

    Attributes:
        weights: the weights by term; a schedule may change them. A term of weight 0 is off, neither computed nor
            logged. Under DistributedDataParallel a head that only such a term uses then needs
            `find_unused_parameters=True`.
        values: after a call, each computed term before weighting and `loss`, the weighted sum; detached scalars, for
            handlers that log them.

    Args:
        terms: losses by name. A name holds no dot and is not `loss`.
        arguments: for each term the names of its tensors, in the order of the term's parameters.
        weights: weights by term; 1 for terms that are not named.

    Raises:
        ValueError: no terms, a term without arguments, names in `arguments` or `weights` that are no terms, or a weight
            that is negative or not finite.
    """

    def __init__(
        self,
        terms: Mapping[str, nn.Module],
        arguments: Mapping[str, Sequence[str]],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        weights = {} if weights is None else weights
        if not terms:
            raise ValueError("`terms` is empty; name at least one loss.")
        if bad := [term for term in terms if term == "loss" or "." in term]:
            raise ValueError(f"Terms cannot be named {bad}: 'loss' is the sum, and a dot is none of a module's name.")
        for label, names in (("arguments", arguments), ("weights", weights)):
            if unknown := sorted(set(names) - set(terms)):
                raise ValueError(f"`{label}` names unknown terms {unknown}; the terms are {sorted(terms)}.")
        for term in terms:
            if isinstance(arguments.get(term, ""), str) or not arguments[term]:
                raise ValueError(f"`arguments` needs a list of tensor names for the term {term!r}.")
            if not (math.isfinite(weights.get(term, 1.0)) and weights.get(term, 1.0) >= 0):
                raise ValueError(f"The weight of {term!r} has to be finite and not negative, got {weights[term]}.")
        self.terms = nn.ModuleDict(terms)
        self.arguments = {term: tuple(arguments[term]) for term in terms}
        self.weights = {term: float(weights.get(term, 1.0)) for term in terms}
        self.values: dict[str, Tensor] = {}

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum, a scalar.

        Args:
            outputs: the network's named tensors, looked up first.
            targets: the batch's named tensors.

        Raises:
            ValueError: a term's tensor is in neither, a term is no scalar, or every weight is 0.
        """
        values: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        for term, loss in self.terms.items():
            if self.weights[term] == 0:
                continue
            value = loss(*(_lookup(name, term, outputs, targets) for name in self.arguments[term]))
            if value.ndim:
                raise ValueError(f"The term {term!r} gave a tensor {tuple(value.shape)}; a loss has to be a scalar.")
            values[term] = value.detach()
            weighted.append(self.weights[term] * value)
        if not weighted:
            raise ValueError(f"Every weight is 0, so there is nothing to train; raise one of {sorted(self.weights)}.")
        total = sum(weighted[1:], start=weighted[0])
        self.values = {**values, "loss": total.detach()}
        return total


def _lookup(name: str, term: str, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor called `name` from the outputs, else from the targets, for `term`."""
    for tensors in (outputs, targets):
        if name in tensors:
            return tensors[name]
    raise ValueError(
        f"The term {term!r} needs {name!r}, which is neither among the outputs {sorted(outputs)} nor among the targets "
        f"{sorted(targets)}."
    )
