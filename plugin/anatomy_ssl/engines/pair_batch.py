"""From a collated batch of matched views to the network's input and the targets of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from anatomy_ssl.data.dataset import subject_ids
from anatomy_ssl.transforms.block_mask import block_mask

__all__ = ["PreparePairs"]


class PreparePairs:
    """`prepare_batch` for MONAI's engines: masks both views of each pair; the teacher sees them whole (Alice).

    Masks are of whole blocks, drawn along all axes, anew for each view; masked voxels are 0 (Jiang et al. 2023, arXiv
    2302.05615). Runs on the batch's device.

    Args:
        block_size: voxels of a block, one number for each axis or one for all.
        mask_ratio: share of the blocks that are masked.
        seed: None draws from torch's global state, as training wants it. A number draws for each pair from a
            generator of that seed, the patients and the places of their views: the same masks in every validation.

    A call returns the input, `{"masked": [view 1, view 2], "whole": [view 1, view 2]}`, each `(N, C, *spatial)`, and
    the targets: `whole_1`, `whole_2`; `mask_1`, `mask_2` `(N, 1, *spatial)`, True where masked; and, for metrics,
    `score` `(N,)`, `fell_back` `(N,)` and `subject_1`, `subject_2` `(N,)`, numbers that stand for patients.

    Raises:
        ValueError: if no block would be masked, or all of them.
    """

    def __init__(self, block_size: Sequence[int] | int = 16, mask_ratio: float = 0.75, seed: int | None = None) -> None:
        self.block_size, self.mask_ratio, self.seed = block_size, mask_ratio, seed

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[dict[str, list[torch.Tensor]], dict[str, torch.Tensor]]:
        """Move a batch to the device and mask it."""

        def to_device(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device=device, non_blocking=non_blocking, **kwargs)

        whole = [to_device(torch.as_tensor(batch[f"view_{n}"])) for n in (1, 2)]
        masks = self._masks(batch, whole[0])
        masked = [view.masked_fill(hidden, 0) for view, hidden in zip(whole, masks)]
        targets = {name: to_device(torch.as_tensor(batch[name])) for name in ("score", "fell_back")}
        for n in (1, 2):
            targets |= {f"whole_{n}": whole[n - 1], f"mask_{n}": masks[n - 1]}
            targets[f"subject_{n}"] = to_device(subject_ids(list(batch[f"subject_{n}"])))
        return {"masked": masked, "whole": whole}, targets

    def _masks(self, batch: Mapping[str, Any], like: torch.Tensor) -> list[torch.Tensor]:
        """Of both views, `(N, 1, *spatial)` each, on the views' device."""
        shape, settings = like.shape[2:], (self.block_size, self.mask_ratio)
        if self.seed is None:
            return list(block_mask(2 * len(like), shape, *settings, device=like.device).chunk(2))
        # pair by pair, so that the other pairs of the batch do not matter
        drawn = [
            block_mask(2, shape, *settings, torch.Generator().manual_seed(seed), like.device)
            for seed in self._seeds(batch)
        ]
        return list(torch.stack(drawn, dim=1))

    def _seeds(self, batch: Mapping[str, Any]) -> list[int]:
        """A number for each pair, from its patients and places; drawn with on the CPU, all devices mask alike."""
        patients = sum(subject_ids(list(batch[f"subject_{n}"])) * n for n in (1, 2))
        places = torch.cat([torch.as_tensor(batch[f"position_{n}"]) for n in (1, 2)], dim=1).double()
        rounded = places.mul(10).round() @ torch.arange(1.0, places.shape[1] + 1, dtype=torch.float64)
        numbers = zip(torch.as_tensor(patients).tolist(), rounded.tolist())
        return [((self.seed or 0) + patient + 1_000_003 * int(place)) % 2**63 for patient, place in numbers]
