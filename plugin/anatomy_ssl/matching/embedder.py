"""From a volume's file to its anatomical embedding."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from nibabel.affines import apply_affine

from anatomy_ssl.data.dataset import as_bad_image
from anatomy_ssl.data.reading import first_path
from anatomy_ssl.matching.dense import DenseEmbedding, embed_volume
from anatomy_ssl.matching.frame import Frame, read_frame
from anatomy_ssl.matching.recipe import EmbeddingRecipe
from anatomy_ssl.networks.anatomical_embedding import AnatomicalEmbedding
from anatomy_ssl.weights.files import file_hash, read_weights
from anatomy_ssl.weights.loading import load_pretrained

__all__ = ["VolumeEmbedder"]


class VolumeEmbedder:
    """Embeds volumes by a trained network, which is read when it is first needed.

    Args:
        path: `embedding.pt` of pretrain_embedding.yaml, weights with the recipe that they ask for.
        device: where the network runs.
        overlap: share of a window that its neighbour covers as well.
        units: what becomes of CTs that are not in Hounsfield units ("raise", "shift" or "off"); None does as the
            training did.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        overlap: float = 0.5,
        units: str | None = None,
    ) -> None:
        self.path, self.device, self.overlap, self.units = os.fspath(path), device, float(overlap), units

    @cached_property
    def recipe(self) -> EmbeddingRecipe:
        """How volumes are prepared.

        Raises:
            FileNotFoundError: there are no weights at the path.
            ValueError: they are no anatomical embedding's.
        """
        record = read_weights(self.path)[1].get("embedding")
        if not isinstance(record, Mapping):
            raise ValueError(
                f"{self.path} does not say how to embed volumes with it (no `embedding` in its record): give the "
                "embedding.pt that pretrain_embedding.yaml writes"
            )
        return EmbeddingRecipe.from_record(record)

    @cached_property
    def model(self) -> dict[str, Any]:
        """What an embedding depends on besides the volume, in JSON types."""
        recipe = self.recipe.to_record()
        return {"sha256": file_hash(self.path), "recipe": recipe, "overlap": self.overlap}

    @cached_property
    def network(self) -> AnatomicalEmbedding:
        """The network with its weights, in evaluation mode, on the device."""
        with torch.random.fork_rng([]):  # its first weights are drawn; others' random numbers are to stay as they are
            network = self.recipe.build()
        load_pretrained(network, self.path, minimum_share=1.0)
        return network.to(self.device).eval()

    @cached_property
    def _prepare(self) -> Compose:
        # of volumes in Hounsfield units this makes the same, so it is no part of `model`
        recipe = self.recipe if self.units is None else replace(self.recipe, units=self.units)
        return Compose(recipe.preparation("image"))

    def __call__(self, item: Mapping[str, Any]) -> DenseEmbedding:
        """Embed the volume of an item. Entries that lie outside of it (a turned volume fills no box) are zero vectors.

        Raises:
            BadImageError: its file cannot be used.
        """
        path = str(first_path(item["image"]))
        try:
            image = self._prepare({"image": item["image"]})["image"]
        except Exception as error:
            raise as_bad_image(error, dict(item)) or error from error
        dense = embed_volume(
            *(self.network, image, self.recipe.patch_size, self.overlap, self.device),
            subject=str(item.get("subject", "")),
            source=path,
        )
        _blank_outside(dense, read_frame(item))
        return dense


def _blank_outside(dense: DenseEmbedding, frame: Frame) -> None:
    """Set fine vectors outside of the volume to zero, in place: there is no anatomy to be found."""
    index = np.moveaxis(np.indices(dense.fine.shape[1:-1]), 0, -1)
    for i, layer in enumerate(dense.fine):
        places = np.concatenate([np.full((*index.shape[:-1], 1), i), index], axis=-1) * dense.fine_stride
        points = apply_affine(dense.affine, places.reshape(-1, places.shape[-1]))
        layer[~frame.contains(torch.from_numpy(points)).numpy().reshape(layer.shape[:-1])] = 0
