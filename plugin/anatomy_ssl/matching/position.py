"""Matching by an ISImed encoder, whose latent space is a positional encoding of the body."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.networks.utils import eval_mode
from monai.transforms import Compose, Orientationd, ScaleIntensityRangePercentilesd, Spacing

from anatomy_ssl.data.atomic import atomic_save, safe_load
from anatomy_ssl.engines.dense import GridEmbeddingInferer
from anatomy_ssl.matching.frame import read_frame, require_inside
from anatomy_ssl.matching.matcher import Matches
from anatomy_ssl.matching.recent import Recent, content_hash, item_key
from anatomy_ssl.transforms.crops import world_to_voxel
from anatomy_ssl.transforms.load import LoadVolumed
from anatomy_ssl.transforms.points import voxel_to_world
from anatomy_ssl.transforms.resampling import sample_volume
from anatomy_ssl.weights.files import fingerprint, settings_of

__all__ = ["PositionMatcher"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LatentMap:
    """What an encoder says of crops on a grid.

    Args:
        values: `(*grid, F)` float32.
        affine: `(D + 1, D + 1)` float64, from the grid's index to the crops' centres in world mm.
    """

    values: torch.Tensor
    affine: torch.Tensor


class PositionMatcher:
    """Finds the place in the target whose crop is nearest to the query's in an ISImed encoder's latent space.

    Crops are looked at on a grid; between its nodes, the latent space is taken to be linear in mm. The score is 1 less
    the distance that is left, in units of the length that the encoder was trained with (100 mm by default): 0.9 says
    that the two crops look as if 10 mm apart. It is 0 for what is further, or outside of the target.

    Args:
        network: the encoder, `(N, C, *crop_size)` -> `(N, F)`.
        crop_size: samples of a crop, as in its training.
        crop_spacing: mm between samples, as in its training; None for the volume's own voxels.
        step: samples between crops of the target.
        preparation: transforms of `{"image": path}`; None loads, orients to RAS and scales intensities as in
            `bundles/isimed`. They must make one volume of all orientations that it may be stored in.
        refine: look between the nodes.
        store: folder for the maps of volumes; None keeps the latest in memory only.
        device: where the encoder runs.
        batch_size: crops at once.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        crop_size: Sequence[int],
        crop_spacing: Sequence[float] | None = None,
        step: int = 4,
        preparation: Sequence[Callable[[Any], Any]] | None = None,
        refine: bool = True,
        store: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
    ) -> None:
        self.network, self.device = network.to(device), device
        self.crop_size = tuple(int(n) for n in crop_size)
        self.crop_spacing = None if crop_spacing is None else tuple(float(s) for s in crop_spacing)
        # crops reach over the edges, so that all of the volume can be found
        self.inferer = GridEmbeddingInferer(self.crop_size, step, batch_size, to_edges=True)
        self.preparation = list(_preparation(len(self.crop_size)) if preparation is None else preparation)
        self.refine, self.batch_size = refine, batch_size
        self.store = None if store is None else Path(store)
        self._volumes: Recent[MetaTensor] = Recent(4)
        self._maps: Recent[LatentMap] = Recent(16)

    def __call__(self, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor) -> Matches:
        """See `Matcher`."""
        require_inside(source, points)
        if not len(points):
            return Matches(points.float(), torch.zeros(0))
        found, distance = nearest(self.encode(source, points), self.latent_map(target), self.refine)
        inside = read_frame(target).contains(found)
        return Matches(found.float(), torch.where(inside, (1 - distance).clamp(min=0), 0.0).float())

    def similarity(self, source: Mapping[str, Any], target: Mapping[str, Any], point: torch.Tensor) -> MetaTensor:
        """1 less the latent distance of each crop of the target from the one at a point `(D,)` of the source.

        Returns:
            `(1, *grid)` with the affine from the grid to world mm, clipped to -1 ... 1.
        """
        require_inside(source, point[None])
        there = self.latent_map(target)
        distance = torch.linalg.vector_norm(there.values - self.encode(source, point[None])[0], dim=-1)
        return MetaTensor((1 - distance).clamp(min=-1)[None], affine=there.affine)

    def encode(self, item: Mapping[str, Any], points: torch.Tensor) -> torch.Tensor:
        """What the encoder says of the crops around points `(N, D)` in world mm, `(N, F)`."""
        volume = self._volume(item)
        voxels = world_to_voxel(volume.affine, points)
        offsets = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in self.crop_size]
        box = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1)[None]
        found = []
        with eval_mode(self.network):
            for part in voxels.split(self.batch_size):
                places = part.view(len(part), *[1] * len(self.crop_size), -1) + box
                crops = sample_volume(volume.as_tensor(), places)
                found.append(self.network(crops.to(self.device)).float().cpu())
        return torch.cat(found)

    def latent_map(self, item: Mapping[str, Any]) -> LatentMap:
        """The map of a volume, from memory, from the store, or computed."""
        return self._maps.get(item_key(item), lambda: self._stored_map(item))

    def _volume(self, item: Mapping[str, Any]) -> MetaTensor:
        """The prepared volume `(C, *spatial)`, in samples of the encoder's crops."""

        def prepare() -> MetaTensor:
            volume: Any = Compose(self.preparation)({"image": item["image"]})["image"]
            resample: Any = None if self.crop_spacing is None else Spacing(pixdim=self.crop_spacing, diagonal=True)
            return volume if resample is None else resample(volume)

        return self._volumes.get(item_key(item), prepare)

    def _stored_map(self, item: Mapping[str, Any]) -> LatentMap:
        if self.store is None:
            return self._computed_map(item)
        settings = [self.crop_size, self.crop_spacing, list(self.inferer.step), settings_of(self.preparation)]
        file = self.store / f"{fingerprint([settings, _hash(self.network), content_hash(item)])[:32]}.pt"
        if file.is_file():
            try:
                return LatentMap(**safe_load(file))
            except (ValueError, TypeError) as error:
                logger.warning("%s: embedding anew", error)
        computed = self._computed_map(item)
        atomic_save({"values": computed.values, "affine": computed.affine}, file)
        return computed

    def _computed_map(self, item: Mapping[str, Any]) -> LatentMap:
        def encode(crops: torch.Tensor) -> torch.Tensor:
            return self.network(crops.to(self.device)).float().cpu()

        with eval_mode(self.network):
            grid: Any = self.inferer(self._volume(item)[None], encode)
        return LatentMap(grid.as_tensor()[0].movedim(0, -1).contiguous(), grid.affine)


def _preparation(dims: int) -> list[Callable[[Any], Any]]:
    """As in the ISImed bundle's training."""
    return [
        LoadVolumed("image", spatial_dims=dims),
        Orientationd("image", axcodes="RAS"[:dims], labels=None),
        ScaleIntensityRangePercentilesd("image", lower=5, upper=95, b_min=-1, b_max=1, channel_wise=True),
    ]


def _hash(network: torch.nn.Module) -> str:
    """SHA-256 of a network's weights."""
    total = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def nearest(query: torch.Tensor, there: LatentMap, refine: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a map is nearest to each query.

    Args:
        query: `(N, F)`.
        there: the map.
        refine: from the nearest node on, follow the map's slope to where it would meet the query, at most one node far.

    Returns:
        world mm `(N, D)` float64, and the latent distance that is left `(N,)`.
    """
    grid = there.values.shape[:-1]
    distance, flat = torch.cdist(query, there.values.flatten(0, -2)).min(dim=1)
    index = torch.stack(torch.unravel_index(flat, grid), dim=1).to(torch.float64)
    if refine:
        moved = torch.zeros_like(index)
        for k in range(len(query)):
            moved[k], distance[k] = _step(query[k], there.values, tuple(index[k].long().tolist()))
        index = index + moved
    return voxel_to_world(there.affine, index).to(torch.float64), distance


def _step(query: torch.Tensor, values: torch.Tensor, node: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """From a node towards the query, in nodes `(D,)`, and the distance `()` that is left there by the linear model."""
    here, slopes = values[node], []
    for axis, place in enumerate(node):
        low, high = max(place - 1, 0), min(place + 1, values.shape[axis] - 1)
        ends = [values[node[:axis] + (end,) + node[axis + 1 :]] for end in (low, high)]
        slopes.append((ends[1] - ends[0]) / max(high - low, 1))
    jacobian = torch.stack(slopes, dim=1).to(torch.float64)  # (F, D)
    apart = (query - here).to(torch.float64)
    # the minimum-norm solution stays where it is along axes on which the map does not change
    step = torch.linalg.lstsq(jacobian, apart[:, None], driver="gelsd").solution[:, 0].clamp(-1, 1)
    return step, torch.linalg.vector_norm(apart - jacobian @ step)
