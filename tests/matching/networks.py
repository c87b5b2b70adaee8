"""Anatomical embeddings with random weights, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from anatomy_ssl.matching import EmbeddingRecipe
from anatomy_ssl.weights import save_encoder


def small_recipe(**changes: Any) -> EmbeddingRecipe:
    """For volumes of some 40 mm a side in any unit: samples of 4 mm, a fine map of 8 mm, a coarse one of 16 mm."""
    dims = changes.get("spatial_dims", 3)
    network = {"features": 8, "channels": [8, 8], "layers": [1, 1], "coarse_level": 1}
    small = {"spacing": (4.0,) * dims, "patch_size": (24,) * dims, "window": None, "percentiles": (1.0, 99.0)}
    return EmbeddingRecipe(**{"network": network, **small, **changes})


def write_embedding(path: Path, seed: int = 0, recipe: EmbeddingRecipe | None = None) -> str:
    """An embedding.pt as pretrain_embedding.yaml writes it, untrained."""
    recipe = small_recipe() if recipe is None else recipe
    torch.manual_seed(seed)
    save_encoder(recipe.build().state_dict(), {"method": "sam", "embedding": recipe.to_record()}, path)
    return str(path)
