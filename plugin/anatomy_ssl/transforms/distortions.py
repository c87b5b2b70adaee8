"""Batched distortions of crops on the device they are on, and the distorted copies that two-view losses compare.

MONAI's `RandCoarseDropout` and `RandCoarseShuffle` work on one image at a time in NumPy. These do the same to a
whole batch of tensors, 2D or 3D, without a loop over the crops and without waiting for the device. They are modules
without weights, and random in training and evaluation alike (a validation loss needs two views too). Each takes its
random numbers from torch's global state, or from a `torch.Generator`: a generator on the CPU gives the same holes on
every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["RandCoarseDropout", "RandCoarseShuffle", "RandomViews"]


class RandCoarseDropout(nn.Module):
    """Fill some boxes of every crop (DeVries and Taylor 2017, arXiv 1708.04552), or everything but some boxes.

    Every box has its own side along every axis, drawn uniformly from the whole numbers of voxels in a range, and a
    position drawn uniformly from those inside the crop. Boxes may overlap. The defaults are ISImed's.

    Args:
        holes: boxes per crop.
        size: smallest and largest side of a dropped box, as a part of the crop's side.
        keep_size: the same for boxes that are kept.
        keep_prob: probability, per crop, of keeping the boxes and filling the rest.
        fill_value: number to fill with, or None for noise uniform between the crop's smallest and largest value
            (MONAI's default).
        prob: probability, per crop, of doing anything.

    Raises:
        ValueError: if `holes` is below 1, a range is not within 0 to 1 in rising order, or a probability is not
            within 0 to 1.
    """

    def __init__(
        self,
        holes: int = 6,
        size: Sequence[float] = (0.10, 0.33),
        keep_size: Sequence[float] = (0.10, 0.66),
        keep_prob: float = 0.5,
        fill_value: float | None = 0.0,
        prob: float = 1.0,
    ) -> None:
        super().__init__()
        for name, (low, high) in {"size": size, "keep_size": keep_size}.items():
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"{name} must be two parts of the crop's side in rising order, 0 to 1, got {(low, high)}"
                )
        _check(holes, {"keep_prob": keep_prob, "prob": prob})
        self.holes, self.size, self.keep_size = holes, tuple(size), tuple(keep_size)
        self.keep_prob, self.fill_value, self.prob = keep_prob, fill_value, prob

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Distort a batch of crops.

        Args:
            x: `(N, C, *roi)` crops, 2D or 3D, any floating type or uint8; not changed.
            generator: source of random numbers; None for torch's global state.

        Returns:
            `(N, C, *roi)`; all channels of a crop share its boxes.
        """
        keep = _uniform((len(x),), x, generator) < self.keep_prob  # (N,)
        low, high = (
            torch.where(keep[:, None], _voxels(self.keep_size[i], x), _voxels(self.size[i], x)) for i in (0, 1)
        )  # (N, D)
        start, stop = random_boxes(x, self.holes, low, high, generator)
        active = _uniform((len(x),), x, generator) < self.prob
        stop = torch.where(active[:, None, None], stop, start)  # crops that are left alone: no box, and none kept
        kept = _per_crop(keep & active, x)
        # (N, 1, *roi), 0 or 1: bytes, with which a CPU is much faster than with bools
        dropped = box_mask(start, stop, x.shape[2:])[:, None].view(torch.uint8) ^ kept.view(torch.uint8)
        if self.fill_value is not None:
            return x.masked_fill(dropped.bool(), self.fill_value)
        space = tuple(range(1, x.ndim))
        smallest, largest = x.amin(space, keepdim=True), x.amax(space, keepdim=True)
        if x.dtype == torch.uint8:
            # only the second byte of the products counts, so 16 bits do; and bytes wrap around: the sum is exact
            levels = (largest - smallest).short() + 1
            noise = _random_bytes(x, generator).short().mul_(levels).bitwise_right_shift_(8).to(torch.uint8)
            return noise.add_(smallest).sub_(x).mul_(dropped).add_(x)
        noise = torch.lerp(smallest, largest, _uniform(x.shape, x, generator).to(x.dtype))
        return torch.where(dropped.bool(), noise, x)


class RandCoarseShuffle(nn.Module):
    """Shuffle the voxels inside some boxes of every crop (Kang et al. 2017, PatchShuffle, arXiv 1707.07103).

    Every channel is shuffled by itself, as in MONAI. The defaults are ISImed's.

    Args:
        holes: boxes per crop, shuffled one after the other; they may overlap.
        size: side of a box in voxels, for all axes or per axis; never more than the crop's.
        prob: probability, per crop, of doing anything.
        min_size: None for boxes of `size`. A number for boxes whose sides are drawn, axis by axis, uniformly from
            `min_size` to `size` voxels. Each box of a crop then has its own sides and its own order of voxels, which
            it shares with one box, elsewhere, of every other crop of the batch: no padding, and one sort for all of
            them, is three times as fast.

    Raises:
        ValueError: if `holes`, `size` or `min_size` is below 1, `min_size` is more than `size`, or `prob` is not within
            0 to 1.
    """

    def __init__(
        self, holes: int = 2, size: int | Sequence[int] = 6, prob: float = 0.8, min_size: int | None = None
    ) -> None:
        super().__init__()
        smallest = min([size] if isinstance(size, int) else size)
        if smallest < 1:
            raise ValueError(f"size must be at least 1 voxel, got {size}")
        if min_size is not None and not 1 <= min_size <= smallest:
            raise ValueError(f"min_size must be at least 1 voxel and at most size, {size}, got {min_size}")
        _check(holes, {"prob": prob})
        self.holes, self.size, self.prob, self.min_size = holes, size, prob, min_size

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Distort a batch of crops.

        Args:
            x: `(N, C, *roi)` crops, 2D or 3D, any type; not changed.
            generator: source of random numbers; None for torch's global state.

        Returns:
            `(N, C, *roi)` with every channel's values, some in other places.

        Raises:
            ValueError: if `size` is given per axis and the crops have another number of axes.
        """
        sides = self._draw_sides(x.shape[2:], generator)  # (H, D)
        fixed = sides.float().to(x.device, non_blocking=True).expand(len(x), -1, -1)
        start, _ = random_boxes(x, self.holes, fixed, fixed, generator)  # (N, H, D)
        numbers = torch.arange(math.prod(x.shape[2:]), device=x.device).view(x.shape[2:])  # of the voxels
        corners = _flat_places(start, x.shape[2:])[:, :, None, None]  # (N, H, 1, 1)
        active = (_uniform((len(x),), x, generator) < self.prob)[:, None, None]
        values = x.flatten(2).clone()  # (N, C, voxels)
        for hole, side in enumerate(sides.tolist()):
            inside = numbers[tuple(slice(n) for n in side)].flatten()  # (P,), from the box's corner
            order = torch.where(active, inside[self._draw_order(x, len(inside), generator)], inside)
            corner = corners[:, hole]
            moved = values.gather(2, (corner + order).expand(-1, x.shape[1], -1))
            values.scatter_(2, (corner + inside).expand_as(moved), moved)
        return values.view(x.shape)

    def _draw_order(self, x: torch.Tensor, length: int, generator: torch.Generator | None) -> torch.Tensor:
        """Orders of a box's voxels, `(N, C, length)`, or `(1, C, length)` that all crops share under `min_size`."""
        if self.min_size is None:
            return _uniform((*x.shape[:2], length), x, generator).argsort(dim=2)
        device = x.device if generator is None else generator.device
        orders = [torch.randperm(length, generator=generator, device=device) for _ in range(x.shape[1])]
        return torch.stack(orders)[None].to(x.device, non_blocking=x.is_cuda)

    def _draw_sides(self, roi: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
        """Sides `(H, D)` of the boxes in voxels, int64, on the CPU: they are the shapes of the tensors to come."""
        sizes = [self.size] * len(roi) if isinstance(self.size, int) else list(self.size)
        if len(sizes) != len(roi):
            raise ValueError(
                f"size {self.size} has {len(sizes)} axes, but the crops have {len(roi)}: give one side, or one per axis"
            )
        largest = torch.tensor([min(size, length) for size, length in zip(sizes, roi)]).expand(self.holes, -1)
        if self.min_size is None:
            return largest
        low = largest.clamp(max=self.min_size)
        part = _uniform(largest.shape, largest, generator)
        return torch.minimum(low + (part * (largest - low + 1)).long(), largest)


class RandomViews(nn.Module):
    """Several independently distorted copies of the same crops, for losses that compare views.

    Args:
        distortions: applied in order to every copy; modules that take `(N, C, *roi)`, and `generator` where one is
            used.
        num_views: copies.

    Raises:
        ValueError: if `num_views` is below 1.
    """

    def __init__(self, distortions: Sequence[nn.Module], num_views: int = 2) -> None:
        super().__init__()
        if num_views < 1:
            raise ValueError(f"num_views must be at least 1, got {num_views}")
        self.distortions = nn.ModuleList(distortions)
        self.num_views = num_views

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        """Copy and distort.

        Args:
            x: `(N, C, *roi)` crops; not changed.
            generator: source of random numbers; None for torch's global state.

        Returns:
            `num_views` tensors `(N, C, *roi)`, the crops in the same order.
        """
        views = []
        for _ in range(self.num_views):
            view = x
            for distortion in self.distortions:
                view = distortion(view) if generator is None else distortion(view, generator=generator)
            views.append(view)
        return views


def random_boxes(
    x: torch.Tensor, holes: int, low: torch.Tensor, high: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw boxes inside crops, independently for every crop.

    Args:
        x: `(N, C, *roi)` crops, D spatial axes.
        holes: boxes per crop, H.
        low: smallest sides in voxels, whole numbers as float32, 1 to the crop's side: `(N, D)`, or `(N, H, D)` for
            each box.
        high: largest sides, included, likewise.
        generator: source of random numbers; None for torch's global state.

    Returns:
        First voxel and first voxel behind every box, `(N, H, D)` each, int64.

    Raises:
        ValueError: if `x` is not a batch of 2D or 3D crops.
    """
    if x.ndim not in (4, 5):
        raise ValueError(f"crops must be (N, C, *roi) with two or three spatial axes, got shape {tuple(x.shape)}")
    roi = _voxels(1.0, x)
    shape = (len(x), holes, x.ndim - 2)
    low, high = (bound if bound.ndim == 3 else bound[:, None] for bound in (low, high))
    # a float32 draw below 1 can round up to the bound itself when scaled, hence minimum
    side = torch.minimum(low + (_uniform(shape, x, generator) * (high - low + 1)).floor(), high)
    start = torch.minimum((_uniform(shape, x, generator) * (roi - side + 1)).floor(), roi - side)
    return start.long(), (start + side).long()


def box_mask(start: torch.Tensor, stop: torch.Tensor, roi: Sequence[int]) -> torch.Tensor:
    """Mark the voxels that lie in at least one box.

    Args:
        start: `(N, H, D)` first voxel of each box.
        stop: `(N, H, D)` first voxel behind it.
        roi: sizes of the D spatial axes.

    Returns:
        `(N, *roi)`, bool.
    """
    lines = []
    for axis, length in enumerate(roi):
        voxel = torch.arange(length, device=start.device)
        lines.append(((voxel >= start[..., axis, None]) & (voxel < stop[..., axis, None])).float())  # (N, H, length)
    plane = lines[0]
    for line in lines[1:-1]:
        plane = (plane[..., None] * line[:, :, None]).flatten(2)  # (N, H, all axes but the last)
    # number of boxes over each voxel; a product over holes and one mask per hole would take H times the memory
    boxes = torch.bmm(plane.mT, lines[-1])
    return boxes.bool().view(len(start), *roi)


def _flat_places(index: torch.Tensor, roi: Sequence[int]) -> torch.Tensor:
    """Numbers `(...)` of the voxels at `index` `(..., D)` in a crop, last axis fastest."""
    place = index[..., 0]
    for axis, length in enumerate(roi[1:], start=1):
        place = place * length + index[..., axis]
    return place


def _voxels(part: float, x: torch.Tensor) -> torch.Tensor:
    """Part of the crops' sides in whole voxels, at least 1: `(D,)` float32 on their device."""
    sides = [float(max(1, round(part * length))) for length in x.shape[2:]]
    return torch.tensor(sides, dtype=torch.float32).to(x.device, non_blocking=True)


def _per_crop(flags: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Shape `(N,)` flags so that they broadcast against `x` `(N, ...)`."""
    return flags.view(-1, *(1 for _ in x.shape[1:]))


def _uniform(shape: Sequence[int], x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Draw from [0, 1) in float32 on the generator's device and give it on that of `x`."""
    device = x.device if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=device).to(x.device, non_blocking=x.is_cuda)


def _random_bytes(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Uniform bytes of the shape of `x`: eight are cut from one draw, six times as fast as `_uniform`."""
    device = x.device if generator is None else generator.device
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=device).random_(
        -(2**63), None, generator=generator
    )
    return draws.view(torch.uint8)[: x.numel()].view(x.shape).to(x.device, non_blocking=x.is_cuda)


def _check(holes: int, probabilities: dict[str, float]) -> None:
    """Refuse settings that cannot be meant."""
    if holes < 1:
        raise ValueError(f"holes must be at least 1, got {holes}")
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a probability, got {value}")
