"""Whether a CT is in Hounsfield units, on which windows of fixed HU rely."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from anatomy_ssl.data.reading import BadImageError

__all__ = ["CheckHounsfieldd"]

logger = logging.getLogger(__name__)

_SHIFT = 1024
# a CT spans air, fat and bone; eight bits or a range of 0 to 1 do not
_LEAST_RANGE = 300
# without their intercept, fat, water and soft tissue lie around 1024
_UNSIGNED_TISSUE = (800, 1400)


class CheckHounsfieldd(MapTransform):
    """Refuse, or mend, CTs that are not in Hounsfield units, before a window of fixed HU turns them to nothing.

    In HU air is -1000, fat -100, water 0 and bone some hundreds. Two faults are known by the values: *unsigned* volumes
    lack their intercept (nothing lies below 0, and soft tissue lies around 1024), and *rescaled* ones span too little
    (0 to 1, or 0 to 255). A volume that is neither is taken as it is.

    Args:
        keys: CTs as loaded, `(C, *spatial)`.
        mode: "raise" refuses both; "shift" subtracts 1024 from unsigned volumes, with a line in the log for each, and
            refuses rescaled ones, of which nobody can tell the scale; "off" looks at nothing (MR).

    Raises:
        ValueError: if the mode is another.
        BadImageError: when a volume is not in HU; it names the file and the remedy.
    """

    def __init__(self, keys: KeysCollection, mode: str = "raise", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        # YAML and the command line turn the word off into a boolean
        self.mode = "off" if mode is False or str(mode).lower() == "false" else mode
        if self.mode not in ("raise", "shift", "off"):
            raise ValueError(f"The mode for units has to be raise, shift or off, not {mode!r}.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check, and in the mode `shift` mend, every volume."""
        d = dict(data)
        for key in self.key_iterator(d) if self.mode != "off" else ():
            d[key] = self._checked(d[key], str(key))
        return d

    def _checked(self, volume: MetaTensor, key: str) -> MetaTensor:
        values = volume.as_tensor()
        path = volume.meta.get("filename_or_obj", key)
        low, high = float(values.min()), float(values.max())
        if high - low < _LEAST_RANGE:
            raise BadImageError(
                path,
                f"its values, {low:g} to {high:g}, are no Hounsfield units (rescaled?): convert it from its DICOM "
                "files again, leave it out, or set units off with an intensity of percentiles",
            )
        if low < 0 or not _UNSIGNED_TISSUE[0] < _body_intensity(values) < _UNSIGNED_TISSUE[1]:
            return volume
        if self.mode == "raise":
            raise BadImageError(
                path,
                f"its values, {low:g} to {high:g}, look like Hounsfield units stored without their intercept of -1024 "
                "(unsigned): set units shift to subtract 1024, or convert it again",
            )
        logger.warning("%s: unsigned, so 1024 is subtracted to get Hounsfield units", path)
        return MetaTensor(values - _SHIFT, meta=volume.meta)


def _body_intensity(values: torch.Tensor) -> float:
    """The median of the brighter part of a volume, what lies above its mean: soft tissue, in any body part."""
    return float(values[values > values.mean(dtype=torch.float64)].median())
