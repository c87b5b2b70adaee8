"""From a collated batch of overlapping patches to one batch of views and the points that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["PreparePatches"]


class PreparePatches:
    """`prepare_batch` for MONAI's engines, for what `RandOverlappingPatchesd` gives.

    Args:
        image_key: patches are `KEY_1` and `KEY_2`.

    A call returns the patches `(2N, C, *patch_size)`, first the N first ones, and the targets: `points` `(2N, P, D)` in
    voxels of the patches, in the same order.
    """

    def __init__(self, image_key: str = "image") -> None:
        self.image_key = image_key

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Move a batch to the device."""

        def both(key: str) -> torch.Tensor:
            views = [torch.as_tensor(batch[f"{key}_{number}"]) for number in (1, 2)]
            views = [view.as_tensor() if hasattr(view, "as_tensor") else view for view in views]
            return torch.cat(views).to(device=device, non_blocking=non_blocking, **kwargs)

        return both(self.image_key), {"points": both("points")}
