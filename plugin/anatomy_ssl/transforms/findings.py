"""Findings of a radiograph, from the names and values of a datalist to the vector that a classifier is trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from anatomy_ssl.data.reading import BadImageError

__all__ = ["FindingsVectord"]

_UNCERTAIN = {"zeros": 0.0, "ones": 1.0, "ignore": math.nan}


class FindingsVectord(MapTransform):
    """Replace an image's findings, name -> 1, 0, -1 (uncertain) or null (not known), by one vector for a classifier.

    Args:
        keys: one mapping of findings (`labels` of our datalists).
        names: of the findings to take, in the order of the vector; others are left out.
        uncertain: what a value of -1 becomes: "zeros", "ones", or "ignore", not known (U-Zeros, U-Ones and U-Ignore of
            Irvin et al. 2019, arXiv 1901.07031).
        missing: what null becomes: "ignore", not known, or "raise".
        exclusive: whether every image has exactly one of the findings, as classes.
        vector_key: where the vector goes, `(K,)` float32 of 0 and 1, NaN where a finding is not known.
        file_key: where an item without findings names the JSON file that holds them, as items of MONAI Label do.

    Raises:
        ValueError: on an unknown policy, or names that are empty or repeated.
        BadImageError: for an image without findings or without one of the names, a value that is none of 1, 0, -1 and
            null, one that is null under "raise", or other than one class under `exclusive`; says what to do.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: Sequence[str],
        uncertain: str = "ignore",
        missing: str = "ignore",
        exclusive: bool = False,
        vector_key: str = "label",
        file_key: str = "label",
    ) -> None:
        super().__init__(keys)
        if uncertain not in _UNCERTAIN:
            raise ValueError(f"uncertain must be zeros, ones or ignore, not {uncertain!r}")
        if missing not in ("ignore", "raise"):
            raise ValueError(f"missing must be ignore or raise, not {missing!r}")
        if isinstance(names, str) or not names or len(set(names)) < len(names):
            raise ValueError(f"the names of the findings are {names!r}: give a list, each once, [Pneumonia, Effusion]")
        self.names, self.uncertain, self.missing = list(names), _UNCERTAIN[uncertain], missing
        self.exclusive, self.vector_key, self.file_key = exclusive, vector_key, file_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Drop the findings and add the vector."""
        d = dict(data)
        (key,) = self.keys
        image = d.get("source", d.get("image", "an image"))
        findings = d.pop(key, None)
        if findings is None and str(d.get(self.file_key, "")).lower().endswith(".json"):
            findings = _read(str(d[self.file_key]))
        if not isinstance(findings, Mapping):
            raise BadImageError(
                image,
                f"the datalist gives no {key!r} for it (a mapping such as {{{self.names[0]!r}: 1}}, or under "
                f"{self.file_key!r} a JSON file with one): add them, or leave the image out",
            )
        vector = torch.tensor([self._value(findings, name, str(image)) for name in self.names])
        if self.exclusive and not vector.isnan().any() and vector.sum() != 1:
            raise BadImageError(image, f"has {int(vector.sum())} of the exclusive classes {self.names}: give it one")
        d[self.vector_key] = vector
        return d

    def _value(self, findings: Mapping[str, Any], name: str, image: str) -> float:
        """1, 0 or NaN."""
        if name not in findings:
            raise BadImageError(
                image,
                f"has no finding {name!r} among its labels ({', '.join(map(str, findings))}): correct the name, or "
                "write null where it is not known",
            )
        value = findings[name]
        if value is None or value == "":
            if self.missing == "raise":
                raise BadImageError(image, f"has no value for {name!r}: fill it, or set missing to ignore")
            return math.nan
        if value not in (0, 1, -1):
            raise BadImageError(
                image, f"has {name!r} = {value!r}: give 1, 0, -1 where it is uncertain, or null where it is not known"
            )
        return self.uncertain if value == -1 else float(value)


def _read(path: str) -> Any:
    """What a JSON file holds."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise BadImageError(
            path, f"cannot be read as JSON ({error}): write the findings as {{name: 1 or 0}}"
        ) from error
