"""Dice of each class by its name, over the images that have the class."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from monai.handlers import MeanDice

logger = logging.getLogger(__name__)


class ClassDice(MeanDice):
    """MONAI's `MeanDice` by class, undefined for a class that is in no label map, where MONAI gives 0.

    Zero would read as a class that the network misses; more often its value is misspelt.

    Args:
        classes: their names, in the order of the channels.
        output_transform: gives predictions and label maps, lists of one-hot `(1 + K, *spatial)`; the first channel, the
            background, is left out.
        include_background: there is no background: `(K, *spatial)`, classes that may overlap.
    """

    def __init__(
        self, classes: Iterable[str], output_transform: Callable = lambda x: x, include_background: bool = False
    ) -> None:
        names = list(classes)
        super().__init__(
            include_background=include_background,
            reduction="mean_batch",
            output_transform=output_transform,
            save_details=False,
            return_with_label=names,
        )

    def compute(self) -> Any:
        """Name -> mean over images, NaN for a class that none of them has."""
        found = super().compute()
        by_image = torch.as_tensor(self.metric_fn.get_buffer())  # (N, K), NaN where an image lacks the class
        absent = by_image.isnan().all(dim=0).tolist()
        for name, missing in zip(list(found), absent):
            if missing:
                logger.warning("no label map holds %s: compare `classes` with the values in the files", name)
                found[name] = math.nan
        return found
