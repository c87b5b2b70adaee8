"""Groups of parameters: rates that fall towards the input, biases and norms without weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["decayed_parameters", "layerwise_parameters"]


def layerwise_parameters(
    network: nn.Module, learning_rate: float, decay: float = 1.0, module: str = ""
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls by a factor with each stage towards the input.

    The stages are the children of `module` that have parameters, in the order in which they were registered, which in
    MONAI's encoders is the order of the forward pass (the members of plain containers count one by one: the blocks of a
    ViT; a dense or convolutional block is one stage, as deep as it is). The last stage gets `decay` times the full
    rate, the one before `decay` squared, and so on (BEiT, Bao et al. 2021, appendix H). Everything outside `module`
    (heads, decoders) gets the full rate.

    Args:
        network: the network to train.
        learning_rate: the full rate.
        decay: factor per stage, above 0 and up to 1; 1 gives one group.
        module: name of the pretrained part (`encoder`, `encoder.features`, `swinViT`, `vit`); "" for the whole network.

    Returns:
        Groups for a torch optimizer, with the names of their stages under `name`.

    Raises:
        ValueError: if `decay` is out of its range or the network has no such part.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"the layer-wise decay must be above 0 and at most 1, not {decay}")
    if decay == 1:
        return [{"params": list(network.parameters()), "lr": learning_rate, "name": "all"}]
    try:
        part = network.get_submodule(module)
    except AttributeError as error:
        children = ", ".join(name for name, _ in network.named_children())
        raise ValueError(f"{type(network).__name__} has no part {module!r}; its parts are {children}") from error
    stages = list(_stages(part, module))
    groups = []
    taken: set[int] = set()
    for depth, (name, stage) in enumerate(stages):
        parameters = [p for p in stage.parameters() if id(p) not in taken]
        taken.update(map(id, parameters))
        groups.append({"params": parameters, "lr": learning_rate * decay ** (len(stages) - depth), "name": name})
    rest = [p for p in network.parameters() if id(p) not in taken]
    groups.append({"params": rest, "lr": learning_rate, "name": "rest"})
    return [group for group in groups if group["params"]]


def decayed_parameters(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices and kernels with weight decay, and what only shifts or scales without.

    Without it are vectors (biases, norms), the bias tables of Swin's windows and the gains of weight-normalised layers.
    Parameters that take no gradient are left out.

    Args:
        network: the network to train.
        weight_decay: of the first group, over 0; `handlers.WeightDecay` may change it while training.

    Returns:
        Groups for a torch optimizer, named `decayed` and `free` under `name`.

    Raises:
        ValueError: if the weight decay is not positive.
    """
    if weight_decay <= 0:
        raise ValueError(f"weight_decay must be positive, not {weight_decay}: give the plain parameters for none")
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "free": []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim < 2 or name.endswith(("relative_position_bias_table", "weight.original0"))
            groups["free" if free else "decayed"].append(parameter)
    decay = {"decayed": weight_decay, "free": 0.0}
    return [{"params": found, "weight_decay": decay[name], "name": name} for name, found in groups.items() if found]


def _stages(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The children with parameters, containers replaced by their members."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}".lstrip(".")
        if type(child) in (nn.Sequential, nn.ModuleList):  # MONAI's blocks are Sequential's children: one stage each
            yield from _stages(child, full)
        elif any(True for _ in child.parameters()):
            yield full, child
