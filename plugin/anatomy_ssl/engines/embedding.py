"""Embeddings of many crops, with where each crop lies."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.utils import eval_mode
from monai.utils import convert_to_numpy

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.weights import check_recipe, load_pretrained

logger = logging.getLogger(__name__)


def load_encoders(
    encoder: torch.nn.Module, checkpoints: Mapping[str, str], recipe: Mapping[str, Any] | None = None
) -> dict[str, torch.nn.Module]:
    """Copies of an encoder with the weights of several methods.

    Args:
        encoder: the architecture; left as it is.
        checkpoints: name of the method -> file with its weights.
        recipe: crops that the encoders will see, compared with the files' records (`weights.check_recipe`).
    """
    encoders = {}
    for name, path in checkpoints.items():
        check_recipe(path, recipe or {})
        encoders[name] = copy.deepcopy(encoder)
        logger.info("%s: %s", name, load_pretrained(encoders[name], path))
    return encoders


def embed_crops(
    encoder: torch.nn.Module,
    data_loader: Iterable[dict[str, Any]],
    device: str | torch.device,
    extra_keys: Sequence[str] = (),
    image_key: str = "image",
) -> Embeddings:
    """Embed every crop of a data loader.

    The encoder is frozen in the strict sense: `eval()` and no gradient, and it is left in the mode that it was in.

    Args:
        encoder: `(N, C, *roi_size)` -> `(N, F)`.
        data_loader: gives batches with `image`, `position` (world mm), `subject`, and, where known, `origin` (world mm)
            and `source` (the file).
        device: where the encoder runs.
        extra_keys: further entries with one value per crop, such as `lesion_volume`.
        image_key: the crops.
    """
    parts = []
    encoder = encoder.to(device)
    with eval_mode(encoder):
        for batch in data_loader:
            z = encoder(torch.as_tensor(batch[image_key]).to(device)).float().cpu()
            position = torch.as_tensor(batch["position"])
            parts.append(
                Embeddings(
                    embedding=z.numpy(),
                    position=position.numpy(),
                    subject=np.asarray(batch["subject"]),
                    image=np.asarray(batch.get("source", [""] * len(z))),
                    origin=convert_to_numpy(batch.get("origin", torch.zeros_like(position))),
                    extra={key: convert_to_numpy(batch[key]) for key in extra_keys},
                )
            )
    return Embeddings.concatenate(parts)
