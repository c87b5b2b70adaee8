"""Reconstruction of what a mask hides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .gather import sum_over_processes


class MaskedReconstructionLoss(nn.Module):
    """Mean squared error of both restored views, over the voxels that the network could not see.

    Args:
        voxels: "masked", or "all" for the mean over all voxels, seen ones too.

    Raises:
        ValueError: `voxels` is neither.
    """

    def __init__(self, voxels: str = "masked") -> None:
        super().__init__()
        if voxels not in ("masked", "all"):
            raise ValueError(f"`voxels` has to be 'masked' or 'all', got {voxels!r}.")
        self.voxels = voxels

    def forward(
        self, restored_1: Tensor, restored_2: Tensor, whole_1: Tensor, whole_2: Tensor, mask_1: Tensor, mask_2: Tensor
    ) -> Tensor:
        """Return the mean over voxels, channels, views and processes, a scalar; 0 where nothing is masked.

        Args:
            restored_1: `(N, C, *spatial)`, what the network made of the first views.
            restored_2: `(N, C, *spatial)`, of the second views.
            whole_1: `(N, C, *spatial)`, the first views.
            whole_2: `(N, C, *spatial)`.
            mask_1: `(N, 1, *spatial)` booleans, True where the first views were masked.
            mask_2: `(N, 1, *spatial)`.

        Raises:
            ValueError: shapes that do not belong together.
        """
        pairs = ((restored_1, whole_1, mask_1), (restored_2, whole_2, mask_2))
        sums = torch.stack([self._sums(*pair) for pair in pairs]).sum(dim=0)
        total, count = sum_over_processes(sums)
        return total / count.clamp(min=1)

    def _sums(self, restored: Tensor, whole: Tensor, mask: Tensor) -> Tensor:
        """Sum of squared errors and number of elements of one view, `(2,)`."""
        if restored.shape != whole.shape or mask.shape != (len(whole), 1, *whole.shape[2:]):
            found = [tuple(x.shape) for x in (restored, whole, mask)]
            raise ValueError(f"Restored and whole views (N, C, *spatial) need a mask (N, 1, *spatial), got {found}.")
        restored, whole, mask = (x.as_subclass(Tensor) for x in (restored, whole, mask))
        dtype = torch.promote_types(restored.dtype, torch.float32)
        error = (restored.to(dtype) - whole.to(dtype)).square()
        if self.voxels == "all":
            return torch.stack([error.sum(), error.new_tensor(error.numel())])
        # the number stays on the device, which is not waited for
        return torch.stack([(error * mask).sum(), mask.sum().to(dtype) * error.shape[1]])
