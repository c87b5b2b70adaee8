"""The anatomical embedding of a whole volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices, to_affine_nd

from anatomy_ssl.networks.anatomical_embedding import AnatomicalEmbedding

__all__ = ["DenseEmbedding", "embed_volume"]


@dataclass(frozen=True, eq=False)
class DenseEmbedding:
    """The embedding of one volume. Entry i of a map lies at voxel stride * i of the prepared volume.

    Args:
        fine: `(*grid, F)` float16 unit vectors.
        coarse: `(*grid_c, F)` float16 unit vectors.
        affine: `(D + 1, D + 1)` float64 from voxels of the prepared volume to world mm (RAS+).
        fine_stride: voxels.
        coarse_stride: voxels.
        shape: `(D,)` voxels of the prepared volume.
        subject: the patient.
        source: the file.
    """

    fine: np.ndarray
    coarse: np.ndarray
    affine: np.ndarray
    fine_stride: int
    coarse_stride: int
    shape: tuple[int, ...]
    subject: str
    source: str


@torch.no_grad()
def embed_volume(
    network: AnatomicalEmbedding,
    image: MetaTensor,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    device: str | torch.device = "cpu",
    background: float = -1.0,
    subject: str = "",
    source: str = "",
) -> DenseEmbedding:
    """Embed a volume by windows of the training patches' size, so that the network sees what it was trained on.

    Where windows overlap, their vectors are averaged with weights that fall off towards a window's border, and brought
    to unit length again. The volume is padded with background at its far end to whole cells; windows start on cells of
    the coarse map, so that all maps share one grid.

    Args:
        network: in evaluation mode on `device`.
        image: `(C, *spatial)`, prepared as for the training.
        patch_size: voxels, multiples of the network's coarse stride.
        overlap: share of a window that its neighbour covers as well.
        device: where the network runs.
        background: value of what is padded.
        subject: kept.
        source: kept.
    """
    stride, dims = network.coarse_stride, network.spatial_dims
    shape = tuple(int(n) for n in image.shape[1:])
    padded = [max(-(-n // stride) * stride, 1) for n in shape]
    window = [min(p, n) for p, n in zip(patch_size, padded)]
    pad = [side for n, full in zip(reversed(shape), reversed(padded)) for side in (0, full - n)]
    x = F.pad(image.as_tensor().float()[None], pad, value=background)
    steps = [max(stride, int(w * (1 - overlap)) // stride * stride) for w in window]
    maps: dict[str, torch.Tensor] = {}
    factors = {"fine": network.fine_stride, "coarse": stride}
    weights = {
        name: compute_importance_map(tuple(max(1, w // f) for w in window), mode="gaussian", sigma_scale=0.25).clamp(
            1e-3
        )
        for name, f in factors.items()
    }
    for box in dense_patch_slices(padded, window, steps):
        found = network(x[(slice(None), slice(None)) + tuple(box)].to(device))
        for name, factor in factors.items():
            if name not in maps:
                maps[name] = torch.zeros(network.features, *[n // factor for n in padded])
            where = tuple(slice(s.start // factor, s.stop // factor) for s in box)
            maps[name][(slice(None),) + where] += found[name][0].cpu() * weights[name]
    rows = {name: F.normalize(m, dim=0).movedim(0, -1).contiguous().half().numpy() for name, m in maps.items()}
    # entries beyond the volume show padding alone
    inside = {name: tuple(slice(0, -(-n // factors[name])) for n in shape) for name in factors}
    return DenseEmbedding(
        fine=np.ascontiguousarray(rows["fine"][inside["fine"]]),
        coarse=np.ascontiguousarray(rows["coarse"][inside["coarse"]]),
        affine=to_affine_nd(dims, image.affine).double().numpy(),
        fine_stride=network.fine_stride,
        coarse_stride=stride,
        shape=shape,
        subject=subject,
        source=source,
    )
