"""Contrast between the places of an image, with the hardest places as negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anatomy_ssl.losses.checks import positive

__all__ = ["PixelContrastLoss"]


class PixelContrastLoss(nn.Module):
    """InfoNCE over points of two views of one image against other places of both (SAM, Yan et al., TMI 2022, eq. 1).

    For a point with embedding q and its other view k, and negatives n of both views that lie beyond a radius around the
    point: -log(exp(q.k / t) / (exp(q.k / t) + sum exp(q.n / t))), averaged over points and over both directions.
    Negatives are drawn at random from the most similar places; a share may come from other images of the batch.

    Args:
        stride: voxels of a patch from one entry of the map to the next.
        temperature: t.
        radius: voxels of the patch around a point within which a place is no negative.
        candidates: most similar places that negatives are drawn from.
        negatives: how many of them are drawn.
        batch_negatives: how many more are drawn from anywhere in the batch's other images.

    A call takes the map `(2B, F, *grid)` of unit vectors, first the B first views, then the B second ones, and the
    points `(2B, P, D)` in voxels of the patches in the same order, and gives a scalar.

    Raises:
        ValueError: when the shapes do not fit one another, or there is no place outside of the radius.
    """

    def __init__(
        self,
        stride: int,
        temperature: float = 0.5,
        radius: float = 6.0,
        candidates: int = 2000,
        negatives: int = 500,
        batch_negatives: int = 0,
    ) -> None:
        super().__init__()
        self.stride, self.temperature, self.radius = stride, positive(temperature, "temperature"), radius
        self.candidates, self.negatives, self.batch_negatives = candidates, negatives, batch_negatives

    def forward(self, embedding: Tensor, points: Tensor) -> Tensor:
        """Return the loss, see the class."""
        dims = embedding.ndim - 2
        if len(embedding) % 2 or points.ndim != 3 or points.shape[::2] != (len(embedding), dims):
            raise ValueError(
                f"maps {tuple(embedding.shape)} need points (2B, P, {dims}) for 2B views, got {tuple(points.shape)}"
            )
        embedding, points = embedding.float(), points.to(embedding.device, torch.float32)
        places = embedding.flatten(2).mT  # (2B, V, F)
        found = at_points(embedding, points / self.stride)  # (2B, P, F)
        centres = self._centres(embedding)
        half = len(embedding) // 2
        terms = []
        for image in range(half):
            views = (image, image + half)
            near = torch.cat([torch.cdist(points[v], centres) for v in views], dim=1) <= self.radius  # (P, 2V)
            here = torch.cat([places[v] for v in views])  # (2V, F)
            positives = (found[views[0]] * found[views[1]]).sum(dim=1)
            others = self._elsewhere(places, views)
            for v in views:
                similar = (found[v] @ here.T).masked_fill(near, -torch.inf)
                terms.append(self._info_nce(positives, similar, found[v] @ others.T))
        return torch.stack(terms).mean()

    def _centres(self, embedding: Tensor) -> Tensor:
        """Voxels of a patch `(V, D)` that the map's entries lie at."""
        axes = [torch.arange(n, device=embedding.device) for n in embedding.shape[2:]]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2).float() * self.stride

    def _elsewhere(self, places: Tensor, views: tuple[int, int]) -> Tensor:
        """Random places `(M, F)` of the batch's other images; none where there are no others."""
        others = [i for i in range(len(places)) if i not in views]
        if not others or not self.batch_negatives:
            return places.new_zeros(0, places.shape[2])
        image = torch.tensor(others)[torch.randint(len(others), (self.batch_negatives,))]
        place = torch.randint(places.shape[1], (self.batch_negatives,))
        return places[image.to(places.device), place.to(places.device)]

    def _info_nce(self, positives: Tensor, similar: Tensor, others: Tensor) -> Tensor:
        count = min(self.candidates, similar.shape[1])
        hardest = similar.detach().topk(count, dim=1, sorted=False).indices
        drawn = (
            torch.rand(hardest.shape, device=hardest.device)
            .topk(min(self.negatives, count), dim=1, sorted=False)
            .indices
        )
        negatives = similar.gather(1, hardest.gather(1, drawn))
        if bool(torch.isinf(negatives).all(dim=1).any()):
            raise ValueError(
                f"no place lies beyond {self.radius} voxels of a point: lower radius or enlarge the patches"
            )
        logits = torch.cat([positives[:, None], negatives, others], dim=1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def at_points(embedding: Tensor, index: Tensor) -> Tensor:
    """Unit vectors `(N, P, F)` of maps `(N, F, *grid)` at fractional indices `(N, P, D)`, linearly interpolated."""
    dims = index.shape[-1]
    size = torch.tensor(embedding.shape[2:], device=index.device)
    grid = (index / (size - 1).clamp(min=1) * 2 - 1).flip(-1)
    grid = grid.reshape(len(index), *[1] * (dims - 1), -1, dims)
    values = F.grid_sample(embedding, grid.to(embedding), padding_mode="border", align_corners=True)
    return F.normalize(values.flatten(2).mT, dim=2)
