"""One answer for an image from several crops of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from monai.inferers import Inferer
from torch.nn import functional as F

__all__ = ["TenCropInferer"]


class TenCropInferer(Inferer):
    """Classify the crops at the corners and in the centre of an image, and average their probabilities.

    Ten crops in 2D: four corners and the centre, each also mirrored (Krizhevsky et al. 2012); 18 in 3D. Returned are
    the logits whose probabilities are the means of the crops' probabilities, so that what follows is the same for one
    crop and for ten. On images of `roi_size` all crops are the image, which is then classified once.

    Args:
        roi_size: voxels of a crop along each axis.
        corners: whether to use the corners; else the centre alone.
        mirror: whether to use mirrored crops as well; not where sides matter, such as that of the heart, unless the
            network was trained on mirrored images too.
        mirror_axis: spatial axis that is mirrored; -1, the columns of a radiograph.
        exclusive: whether probabilities are a softmax over the classes; else a sigmoid for each.

    Raises:
        ValueError: if a size is not positive or there is no such axis.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        corners: bool = True,
        mirror: bool = False,
        mirror_axis: int = -1,
        exclusive: bool = False,
    ) -> None:
        self.roi_size = tuple(int(size) for size in roi_size)
        if not self.roi_size or min(self.roi_size) < 1:
            raise ValueError(f"roi_size {list(roi_size)} has to be positive numbers of voxels")
        if not -len(self.roi_size) <= mirror_axis < len(self.roi_size):
            raise ValueError(f"mirror_axis {mirror_axis} is no axis of crops of {list(self.roi_size)} voxels")
        self.corners, self.mirror, self.exclusive = corners, mirror, exclusive
        self.mirror_dim = mirror_axis % len(self.roi_size) + 2

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Classify images.

        Args:
            inputs: `(N, C, *spatial)`, at least `roi_size`.
            network: `(N, C, *roi_size)` -> logits `(N, K)`.
            args: further arguments of the network.
            kwargs: further arguments of the network.

        Returns:
            Logits `(N, K)`.

        Raises:
            ValueError: if the images are smaller than a crop or have other dimensions, or the network gives no logits.
        """
        crops = self.crops(inputs)
        outputs = [network(crop.contiguous(), *args, **kwargs) for crop in crops]
        if outputs[0].ndim != 2:
            raise ValueError(f"the network gives {tuple(outputs[0].shape)} for a batch, not logits (N, K)")
        if len(outputs) == 1:
            return outputs[0]
        stacked = torch.stack(outputs).float()  # (crops, N, K)
        if self.exclusive:
            return F.log_softmax(stacked, dim=-1).logsumexp(dim=0) - torch.tensor(float(len(outputs))).log()
        # log of p / (1 - p) with the means p and 1 - p: no probability is rounded to 0 or 1 on the way
        return F.logsigmoid(stacked).logsumexp(dim=0) - F.logsigmoid(-stacked).logsumexp(dim=0)

    def crops(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """The crops `(N, C, *roi_size)`: the centre, the corners, then the same mirrored; equal ones once."""
        sizes = tuple(inputs.shape[2:])
        if len(sizes) != len(self.roi_size) or any(n < roi for n, roi in zip(sizes, self.roi_size)):
            raise ValueError(
                f"images of {sizes} voxels hold no crop of {self.roi_size}: resize them to more, or take smaller crops"
            )
        places = [tuple((n - roi) // 2 for n, roi in zip(sizes, self.roi_size))]
        if self.corners:
            places += list(product(*[(0, n - roi) for n, roi in zip(sizes, self.roi_size)]))
        found = []
        for place in dict.fromkeys(places):
            crop = inputs
            for dim, (first, roi) in enumerate(zip(place, self.roi_size), start=2):
                crop = crop.narrow(dim, first, roi)
            found.append(crop)
        return found + [crop.flip(self.mirror_dim) for crop in found] if self.mirror else found
