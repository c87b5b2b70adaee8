"""Two views of one volume that overlap, with points known in both: what a dense embedding learns from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.transforms.utils import create_rotate

from anatomy_ssl.data.lookup_volume import Volume
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms.crops import world_to_voxel
from anatomy_ssl.transforms.padded_crops import padded_box

__all__ = ["RandOverlappingPatchesd"]


class RandOverlappingPatchesd(Randomizable, MapTransform):
    """Cut two patches of one volume, each moved, zoomed and turned by itself, and say which points they share.

    The self-supervision of SAM (Yan et al., TMI 2022, section 3.1): the same point of one body, seen twice.

    Args:
        keys: images `(C, *spatial)`, all cut alike; the first one's geometry counts.
        patch_size: voxels of a patch.
        num_points: P, shared points to draw.
        num_pairs: pairs of patches of each volume.
        max_shift: how far the second patch may lie from the first, as a share of the patch size along each axis.
        zoom: smallest and largest factor by which a patch's samples lie further apart than the volume's voxels.
        rotation: largest angle in radians, about each axis.
        points_key: entry with the body's points `(N, D)` in world mm, see `ForegroundPointsd`.
        background: value outside of the volume.

    A call gives a list of `num_pairs` items. Instead of each key they hold `KEY_1` and `KEY_2`, `(C, *patch_size)`, and
    besides `points_1` and `points_2`, float32 `(P, D)`: where the same P points of the body lie in the two patches, in
    voxels of the patch from its first voxel's centre.

    Raises:
        BadImageError: if no two patches are found that share a point of the body.
    """

    tries = 20

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: Sequence[int],
        num_points: int = 100,
        num_pairs: int = 1,
        max_shift: float = 0.4,
        zoom: Sequence[float] = (0.8, 1.2),
        rotation: float = 0.0,
        points_key: str = "foreground",
        background: float = -1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.patch_size = tuple(int(n) for n in patch_size)
        self.num_points, self.num_pairs, self.max_shift = num_points, num_pairs, max_shift
        self.zoom, self.rotation = tuple(zoom), rotation
        self.points_key, self.background = points_key, background
        if not 0 < self.zoom[0] <= self.zoom[1] or not 0 <= max_shift < 1 or min(num_points, num_pairs) < 1:
            raise ValueError(
                f"zoom {self.zoom} has to be positive, max_shift {max_shift} within 0 and 1, num_points {num_points} "
                f"and num_pairs {num_pairs} positive"
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Cut the pairs."""
        d = dict(data)
        image: Volume = d[self.first_key(d)]
        body = world_to_voxel(image.affine, d[self.points_key])
        shared = {k: v for k, v in d.items() if k not in (*self.keys, self.points_key)}
        items = []
        for _ in range(self.num_pairs):
            views, points = self._draw(body, d.get("source", self.first_key(d)))
            item = dict(shared)
            for number, (centre, matrix) in enumerate(views, start=1):
                item[f"points_{number}"] = self._inside(points, centre, matrix)[0].float()
                for key in self.key_iterator(d):
                    item[f"{key}_{number}"] = self._cut(d[key], centre, matrix)
            items.append(item)
        return items

    def _draw(self, body: torch.Tensor, source: Any) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """Centre and matrix of two patches, and P points of the body in both, all in voxels of the volume."""
        size = np.array(self.patch_size, dtype=np.float64)
        for _ in range(self.tries):
            first = body[self.R.randint(len(body))].numpy() + self.R.uniform(-0.25, 0.25, len(size)) * size
            second = first + self.R.uniform(-self.max_shift, self.max_shift, len(size)) * size
            views = [(torch.from_numpy(centre), self._matrix(len(size))) for centre in (first, second)]
            both = torch.stack([self._inside(body, *view)[1] for view in views]).all(dim=0).nonzero()[:, 0].numpy()
            if len(both):
                chosen = body[self.R.choice(both, self.num_points)]
                # off the grid that the body's points lie on, yet within the patches
                moved = chosen + torch.from_numpy(self.R.uniform(-1.5, 1.5, tuple(chosen.shape)))
                inside = torch.stack([self._inside(moved, *view)[1] for view in views]).all(dim=0)
                return views, torch.where(inside[:, None], moved, chosen)
        raise BadImageError(source, "no two patches share a point of the body: lower max_shift, or leave it out")

    def _matrix(self, dims: int) -> torch.Tensor:
        """From steps of a patch to voxels of the volume, `(D, D)`."""
        zoom = np.exp(self.R.uniform(*np.log(self.zoom)))
        angles = self.R.uniform(-self.rotation, self.rotation, 3 if dims == 3 else 1)
        turn = create_rotate(dims, list(angles))[:dims, :dims]
        return torch.from_numpy(zoom * np.asarray(turn))

    def _inside(self, points: torch.Tensor, centre: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Voxels of a patch `(N, D)` of points in voxels of the volume, and whether they lie in the patch `(N,)`."""
        last = torch.tensor(self.patch_size, dtype=torch.float64) - 1
        place = torch.linalg.solve(matrix, (points - centre).T).T + last / 2
        return place, ((place >= 0) & (place <= last)).all(dim=1)

    def _cut(self, image: Volume, centre: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        """The patch `(C, *patch_size)`, linearly interpolated, `background` beyond the volume."""
        steps = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in self.patch_size]
        index = torch.stack(torch.meshgrid(*steps, indexing="ij"), dim=-1) @ matrix.T + centre
        # one voxel more than the patch reaches on every side, such that it fades into the background beyond the volume
        low = index.reshape(-1, len(steps)).amin(0).floor().long() - 1
        size = index.reshape(-1, len(steps)).amax(0).ceil().long() + 2 - low
        grid = ((index - low) / (size - 1).double() * 2 - 1).flip(-1).float()  # grid_sample wants the last axis first
        values = padded_box(image, low.tolist(), size.tolist(), self.background) - self.background
        return F.grid_sample(values[None], grid[None], align_corners=True)[0] + self.background
