"""The same anatomy by anatomical embeddings (SAM)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from anatomy_ssl.data.embedding_store import EmbeddingStore
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.data.source import source_fingerprint
from anatomy_ssl.data.stored_embedding import StoredEmbedding
from anatomy_ssl.matching.embedder import VolumeEmbedder
from anatomy_ssl.matching.frame import read_frame, require_inside
from anatomy_ssl.matching.matcher import Matches
from anatomy_ssl.matching.recent import Recent, item_key
from anatomy_ssl.matching.search import best_match, refine_peak, similarity_map
from anatomy_ssl.switches import switch

__all__ = ["EmbeddingMatcher"]

logger = logging.getLogger(__name__)

KEPT = 32  # volumes kept open


class EmbeddingMatcher:
    """Finds points by the anatomical embedding of their surroundings (SAM, Yan et al., TMI 2022).

    Nothing is read before the first call. Scores are means of two cosines, -1 to 1; 0.7 is a usual threshold.
    Where a match lies outside of the target, it is 0.

    Args:
        embedding: `embedding.pt`, what pretrain_embedding.yaml writes.
        store: folder of the volumes' embeddings, see `EmbeddingStore`.
        device: where volumes are embedded that are not in the store. The search runs on the CPU.
        refine: place matches between the map's entries; false takes the entries.
        compute: embed volumes that are not in the store, or are damaged or stale there; false raises.
        overlap: see `VolumeEmbedder`.
        min_score: matches of a lower score are of no use to you: where there is no better one, the search ends early
            with one of them. None always finds the best.
        units: see `VolumeEmbedder`.
    """

    def __init__(
        self,
        embedding: str | os.PathLike[str],
        store: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        refine: bool | str = True,
        compute: bool | str = True,
        overlap: float = 0.5,
        min_score: float | None = None,
        units: str | None = None,
    ) -> None:
        self.embedder = VolumeEmbedder(embedding, device, overlap, units)
        self.folder = os.fspath(store)
        self.refine, self.compute = switch(refine, "refine"), switch(compute, "compute")
        self.min_score = min_score
        self._open: Recent[StoredEmbedding] = Recent(KEPT)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open: each process maps the files for itself, and reads the network only if it has to."""
        made = self.embedder
        embedder = VolumeEmbedder(made.path, made.device, made.overlap, made.units)
        return {**self.__dict__, "embedder": embedder, "_open": Recent(KEPT)}

    def __call__(self, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor) -> Matches:
        """Find points of one volume in another.

        Args:
            source: item of a datalist.
            target: likewise.
            points: `(N, D)` world mm (RAS+) in the source.

        Raises:
            ValueError: a point lies outside of the source; an embedding is absent, damaged or stale and `compute` is
                false; embedding.pt cannot be used.
            FileNotFoundError: there is no embedding.pt.
            BadImageError: a volume cannot be used.
        """
        points = torch.as_tensor(points)
        require_inside(source, points)
        fine, coarse = self._query(source, points)
        there = self.open(target)
        index, scores = best_match(fine, coarse, there, self.min_score)
        place = refine_peak(fine, coarse, there, index) if self.refine else index
        found = torch.from_numpy(there.to_world(place.numpy()))
        inside = read_frame(target).contains(found)
        return Matches(found.float(), scores.clamp(max=1).where(inside, 0.0))

    def similarity(self, source: Mapping[str, Any], target: Mapping[str, Any], point: torch.Tensor) -> MetaTensor:
        """Scores of one point `(D,)` in world mm of the source all over the target, `(1, *grid)` with affine to mm."""
        points = torch.as_tensor(point)[None]
        require_inside(source, points)
        there = self.open(target)
        return MetaTensor(
            similarity_map(*self._query(source, points), there), affine=torch.from_numpy(there.index_affine)
        )

    def open(self, item: Mapping[str, Any]) -> StoredEmbedding:
        """The embedding of an item's volume, from the store, or else computed and put there."""
        return self._open.get(item_key(item), lambda: self._from_store(item))

    def _from_store(self, item: Mapping[str, Any]) -> StoredEmbedding:
        store = EmbeddingStore(self.folder, self.embedder.model)
        try:
            return store.get(item)
        except BadImageError:
            raise
        except (ValueError, FileNotFoundError) as error:
            if not self.compute:
                raise
            absent = isinstance(error, FileNotFoundError)
            logger.log(logging.INFO if absent else logging.WARNING, "it is computed now: %s", error)
        fingerprint = source_fingerprint(item)
        store.put(item, self.embedder(item), fingerprint)
        for _ in range(20):
            try:
                return store.get(item)
            except FileNotFoundError:  # another process is just putting its own in the place of this one
                time.sleep(0.05)
        return store.get(item)

    def _query(self, source: Mapping[str, Any], points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = self.open(source).vectors_at(np.asarray(points, dtype=np.float64))
        return torch.from_numpy(vectors[0]), torch.from_numpy(vectors[1])
