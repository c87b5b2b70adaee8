"""What each place of an image says of each class, as a MONAI inferer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data.utils import compute_importance_map
from monai.utils import convert_to_tensor
from torch import nn
from torch.nn import functional as F

from anatomy_ssl.engines.ten_crop import TenCropInferer

__all__ = ["ClassActivationInferer"]

_TOLERANCE = 1e-3  # of logits, as sums of many float32 numbers
_LINEAR = {2: "bilinear", 3: "trilinear"}


class ClassActivationInferer(TenCropInferer):
    """Classify images as `TenCropInferer` does, and map what led to it: class activation maps of all classes.

    For a network that ends in a mean over the cells of a feature map and a linear layer (Zhou et al. 2016, arXiv
    1512.04150): the layer applied to every cell gives a map whose mean over the cells is the network's output, so that
    map and output cannot disagree. `monai.visualize.CAM` gives the same map, for one class and with one more pass at a
    time. Where crops overlap, the map is a weighted mean of theirs.

    Args:
        roi_size: voxels of a crop along each axis.
        corners: whether to use the corners; else the centre alone.
        features: name of the submodule that gives the feature map `(N, F, *grid)`.
        head: name of the linear layer `F -> K`.
        options: the other arguments of `TenCropInferer`.

    A call takes images `(N, C, *spatial)` and gives `{"logits": (N, K), "map": (N, K, *spatial)}`: the classes' logits,
    and those of each place; NaN in the map is what no crop shows.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        corners: bool = True,
        features: str = "encoder.backbone",
        head: str = "head",
        **options: Any,
    ) -> None:
        super().__init__(roi_size, corners, **options)
        self.features, self.head = features, head

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Run the network on images; see the class.

        Raises:
            ValueError: if the network lacks one of the parts, its output is not the mean of the map, or as
                `TenCropInferer`.
        """
        layer, head = _part(network, self.features), _part(network, self.head)
        images = convert_to_tensor(inputs, track_meta=False)
        seen: list[torch.Tensor] = []
        maps: list[torch.Tensor] = []

        def run(crop: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            logits = network(crop, *args, **kwargs)  # (N, K)
            cells = head(seen.pop().movedim(1, -1)).movedim(-1, 1).float()  # (N, K, *grid)
            if not torch.allclose(cells.flatten(2).mean(2), logits.float(), atol=_TOLERANCE, rtol=_TOLERANCE):
                raise ValueError(
                    f"the network's output is not the mean over cells of {self.head!r} on {self.features!r}: a class "
                    "activation map needs a mean over the cells and one linear layer behind it"
                )
            maps.append(F.interpolate(cells, self.roi_size, mode=_LINEAR[cells.ndim - 2]))
            return logits

        hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            logits = super().__call__(images, run, *args, **kwargs)
        finally:
            hook.remove()
        return {"logits": logits, "map": self._put_together(maps, tuple(images.shape[2:]))}

    def _put_together(self, maps: Sequence[torch.Tensor], size: tuple[int, ...]) -> torch.Tensor:
        """Mean of the crops' maps `(N, K, *roi_size)` at each place, `(N, K, *size)`; their middles weigh more."""
        voxels = torch.arange(torch.Size(size).numel(), device=maps[0].device).reshape(1, 1, *size)
        # without weights the edges of crops would show
        weight = compute_importance_map(self.roi_size, "gaussian", sigma_scale=0.25, device=maps[0].device).flatten()
        total = maps[0].new_zeros(*maps[0].shape[:2], voxels.numel())
        sum_of_weights = maps[0].new_zeros(voxels.numel())
        for crop, voxel in zip(maps, self.crops(voxels)):
            total.index_add_(2, voxel.flatten(), crop.flatten(2) * weight)
            sum_of_weights.index_add_(0, voxel.flatten(), weight)
        return (total / sum_of_weights).reshape(*total.shape[:2], *size)


def _part(network: Any, name: str) -> nn.Module:
    """A submodule by its name."""
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"{type(network).__name__} has no part {name!r}: set `features` and `head` of the inferer to its names"
        ) from error
