"""A set of images as several encoders see them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import to_affine_nd

from anatomy_ssl.data.folder import file_stem
from anatomy_ssl.data.tokens import TokenMap
from anatomy_ssl.engines.tokens import TokenInferer, encode_item
from anatomy_ssl.figures.correspondence import Picture
from anatomy_ssl.metrics.correspondence import less_mean

__all__ = ["EncodedImages", "errors_told"]

logger = logging.getLogger(__name__)


@contextmanager
def errors_told() -> Iterator[None]:
    """Log what a user can mend in one line: MONAI's bundle wraps it in messages of its own."""
    try:
        yield
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        raise


class EncodedImages:
    """Images in memory, with the tokens that a trained and some random encoders make of them, computed when asked for.

    Args:
        network: the trained encoder.
        random_encoders: others of the same architecture, each with its own initial weights, at least one.
        data_loader: gives lists of one item, see `TokenExtraction`; items may have `landmarks` (name -> (row, column)
            in the file's pixels), `sex`, `view` and `labels` (name -> value) and paths of masks.
        inferer: how an image becomes tokens.
        normalisation: what the loader leaves to be done before the encoder; without it the images are drawn.
        device: where the encoders run.
        centre: compare tokens less the mean of all of them, which says nothing of places.

    Raises:
        ValueError: there is no random encoder.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        random_encoders: Sequence[torch.nn.Module],
        data_loader: Iterable[Sequence[dict[str, Any]]],
        inferer: TokenInferer,
        normalisation: Any,
        device: str | torch.device = "cpu",
        centre: bool = True,
    ) -> None:
        if not random_encoders:
            raise ValueError("random_encoders is empty: a result means nothing without the row of random encoders")
        self.encoders = {"trained": network, **{f"random_{i}": net for i, net in enumerate(random_encoders)}}
        self.data_loader, self.inferer, self.normalisation = data_loader, inferer, normalisation
        self.device, self.centre = device, centre
        self._maps: dict[tuple[str, int], TokenMap] = {}

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """The prepared images, two-dimensional."""
        items = [item for (item,) in self.data_loader]
        if items[0]["image"].ndim != 3:
            raise ValueError(f"{items[0]['source']} is a volume: the visual tests are drawn of radiographs")
        return items

    def maps(self, encoder: str, images: Sequence[int]) -> list[TokenMap]:
        """The tokens of some images by one encoder; centred over these images."""
        for i in images:
            if (encoder, i) not in self._maps:
                item = self.normalisation(self.items[i])
                self._maps[encoder, i] = encode_item(item, self.encoders[encoder], self.inferer, self.device, "float32")
        chosen = [self._maps[encoder, i] for i in images]
        return less_mean(chosen) if self.centre else chosen

    def with_landmarks(self) -> list[int]:
        """Numbers of the images whose landmarks are known."""
        return [i for i, item in enumerate(self.items) if item.get("landmarks")]

    def choose(self, names: Sequence[str] | None, number: int) -> list[int]:
        """Numbers of images by the patient's or the file's name; None takes the first of `number` patients.

        Raises:
            ValueError: no image has that name.
        """
        if names is None:
            first: dict[str, int] = {}
            for i, item in enumerate(self.items):
                first.setdefault(str(item["subject"]), i)
            return list(first.values())[:number]
        known: dict[str, int] = {}
        for i, item in enumerate(self.items):
            for name in (item["subject"], file_stem(item["source"]), Path(item["source"]).name):
                known.setdefault(str(name), i)
        unknown = [name for name in names if str(name) not in known]
        if unknown:
            some = ", ".join(str(item["subject"]) for item in self.items[:5])
            raise ValueError(f"there is no image of {unknown[0]!r} among {len(self.items)}: {some} ...")
        return [known[str(name)] for name in names]

    def group(self, i: int, key: str) -> Any:
        """An item's `sex`, `view` or other entry, or the value of the label of that name; None where it has neither."""
        item = self.items[i]
        return item.get(key, (item.get("labels") or {}).get(key))

    def picture(self, i: int) -> Picture:
        """An image to be drawn, titled by what is known of the patient."""
        item = self.items[i]
        labels: Mapping[str, Any] = item.get("labels") or {}
        found = ", ".join(name for name, value in labels.items() if value == 1)
        known = [str(item[key]) for key in ("sex", "view") if item.get(key)]
        title = f"{item['subject']}\n" + " · ".join([*known, *([found or "no finding"] if labels else [])])
        image = item["image"]
        affine = to_affine_nd(2, image.affine).numpy()
        return Picture(image.as_tensor()[0].numpy(), affine, item["original_size"].numpy(), title.strip())

    def positions(self, images: Sequence[int]) -> list[TokenMap]:
        """The places of the tokens, relative to the frame, as if they were tokens: what needs no encoder."""
        maps = [self._maps["trained", i] for i in images]
        return [_with_position(m) for m in maps]


def _with_position(m: TokenMap) -> TokenMap:
    relative = (m.position + 0.5) / m.image_size
    return TokenMap(
        np.moveaxis(relative, -1, 0).astype(np.float32),
        *(m.affine, m.image_size, m.cell_size, m.subject, m.source, m.pixel_to_mm),
    )
