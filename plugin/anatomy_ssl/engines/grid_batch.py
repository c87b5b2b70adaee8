"""From a collated batch of grid-aligned views to the network's input and the targets of the pretext tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from anatomy_ssl.data.dataset import subject_ids
from anatomy_ssl.transforms.cells import permute_cells
from anatomy_ssl.transforms.grid_views import match_cells

__all__ = ["PrepareGridViews"]


class PrepareGridViews:
    """`prepare_batch` for MONAI's engines: distorts the first view of each image, keeps the second clean (PEAC).

    Each first view is distorted in one of two ways (Zhou et al. 2023, arXiv 2312.00335, after POPAR): its cells are
    shown in a random order, the image otherwise clean; or the order is kept and the appearance is distorted. In both
    cases the clean first view is to be restored. Runs on the batch's device, on one channel; channels are repeated
    afterwards. Images are floats from 0 to 1, or bytes, which travel to the device faster and are distorted as bytes.

    Args:
        grid_size: cells of a view along each axis.
        appearance: distortions of a batch `(N, C, *spatial)` of intensities from 0 to 1, or of bytes, as the images
            come; applied in order to the images whose cells are not shuffled; each takes `generator`.
        order_prob: probability, per image, of shuffled cells rather than a distorted appearance.
        mean: of the intensities, subtracted after all distortions.
        std: of the intensities, divided by.
        channels: how often the one channel of the images is repeated for the network.
        image_key: views are `KEY_1` and `KEY_2`, as from `RandGridViewsd`.
        seed: None draws from torch's global state, as training wants it. A number draws from a generator of that seed,
            the batch's patients and where their views start: the same distortions of a view in every validation.

    A call returns the two views `(N, C, *spatial)` and the targets: `target_order` `(N, T)`, the cell shown at each
    place of the first view; `clean` `(N, 1, *spatial)`, normalised; `match` `(N, T)`, the cell of the second view that
    shows the same as each cell of the first, or -1; `ordered` `(N,)`, whether the first view has its cells in their
    true order.
    """

    def __init__(
        self,
        grid_size: Sequence[int],
        appearance: Sequence[Callable[..., torch.Tensor]] = (),
        order_prob: float = 0.5,
        mean: float = 0.5056,
        std: float = 0.252,
        channels: int = 1,
        image_key: str = "image",
        seed: int | None = None,
    ) -> None:
        if not 0 <= order_prob <= 1:
            raise ValueError(f"order_prob must be a probability, got {order_prob}")
        self.grid_size, self.appearance, self.order_prob = tuple(grid_size), list(appearance), order_prob
        self.mean, self.std, self.channels = mean, std, channels
        self.image_key, self.seed = image_key, seed

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Move a batch to the device, distort it, and describe what was done."""

        def to_device(key: str) -> torch.Tensor:
            tensor = torch.as_tensor(batch[key])
            tensor = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
            return tensor.to(device=device, non_blocking=non_blocking, **kwargs)

        first, second = (to_device(f"{self.image_key}_{view}") for view in (1, 2))
        start_1, start_2 = (to_device(f"cell_{view}") for view in (1, 2))
        generator = self._generator(batch)
        order, ordered = self._draw_order(first, generator)
        # row numbers from the CPU: the device is not waited for, and each image goes through one kind of distortion
        left, moved = (rows.nonzero()[:, 0].to(first.device, non_blocking=True) for rows in (ordered, ~ordered))
        # index_select copies whole images: on a CPU several times as fast as first[rows] and shown[rows] = ...
        permuted = permute_cells(first.index_select(0, moved), order.index_select(0, moved), self.grid_size)
        distorted = first.index_select(0, left)
        for distortion in self.appearance if len(left) else ():
            distorted = distortion(distorted, generator=generator)
        shown = torch.cat([permuted, distorted]).index_select(0, torch.cat([moved, left]).argsort())
        views = [self._normalise(view) for view in (shown, second)]
        if self.channels > 1:
            views = [view.repeat_interleave(self.channels, dim=1) for view in views]
        match = match_cells(start_1, start_2, self.grid_size)
        ordered = ordered.to(first.device, non_blocking=True)
        return views, {"target_order": order, "clean": self._normalise(first), "match": match, "ordered": ordered}

    def _generator(self, batch: Mapping[str, Any]) -> torch.Generator | None:
        """On the CPU, so that every device draws alike; of the patients and of which of their views these are."""
        if self.seed is None:
            return None
        patients = int(subject_ids(list(batch["subject"])).sum())
        starts = torch.stack([torch.as_tensor(batch[f"cell_{view}"]) for view in (1, 2)]).flatten(1).double()
        places = int((starts @ torch.arange(1.0, starts.shape[1] + 1, dtype=torch.float64)).sum())
        return torch.Generator().manual_seed((self.seed + patients + 1_000_003 * places) % 2**63)

    def _draw_order(self, x: torch.Tensor, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The cell shown at each place `(N, T)`, and which images are left in order `(N,)`, the latter on the CPU."""
        cells = math.prod(self.grid_size)
        where = x.device if generator is None else generator.device
        ordered = torch.rand(len(x), generator=generator) >= self.order_prob
        shuffled = torch.rand(len(x), cells, generator=generator, device=where).argsort(dim=1).to(x.device)
        in_place = torch.arange(cells, device=x.device)
        order = torch.where(ordered.to(x.device, non_blocking=True)[:, None], in_place, shuffled)
        return order, ordered

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        largest = 255 if x.dtype == torch.uint8 else 1
        shift = torch.full((), -self.mean / self.std, device=x.device)
        return torch.add(shift, x.float(), alpha=1 / (largest * self.std))
