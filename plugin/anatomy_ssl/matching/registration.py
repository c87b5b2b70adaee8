"""Matching by registration: no network and no training, and what a trained embedding has to beat."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import SimpleITK as sitk  # noqa: N813
import torch

from anatomy_ssl.data.atomic import atomic_write
from anatomy_ssl.matching.alignment import (
    AlignmentError,
    AlignmentSettings,
    Body,
    align,
    prepare_body,
    transform_points,
)
from anatomy_ssl.matching.frame import read_frame, require_inside
from anatomy_ssl.matching.matcher import Matches
from anatomy_ssl.matching.recent import Recent, content_hash, item_key
from anatomy_ssl.weights.files import fingerprint

__all__ = ["RegistrationMatcher"]

logger = logging.getLogger(__name__)

METHOD = "affine and B-spline by mutual information, 1"  # a number for each change of what is computed
_KINDS: dict[str, Callable[[], sitk.Transform]] = {
    "AffineTransform": partial(sitk.AffineTransform, 3),
    "BSplineTransform": partial(sitk.BSplineTransform, 3, 3),
}


class RegistrationMatcher:
    """Takes points through a transform that lays the source's body upon the target's.

    Scores are 1 inside the target's field of view and 0 outside; pairs that cannot be registered are logged, and all
    their scores are 0.

    Args:
        store: folder for the transforms, one small file for each pair, by the content of both images and the settings:
            a changed image is registered anew. None keeps them in memory only.
        transform: "affine", or "bspline" for a B-spline after it.
        spacing: mm between voxels of the volumes that are compared.
        window: intensities (low, high) that count; None takes the 1st and the 99th percentile of each body.
        control_spacing: mm between the B-spline's control points.
        iterations: see `AlignmentSettings`.
        samples: likewise.
        seed: likewise.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        transform: Literal["affine", "bspline"] = "affine",
        spacing: float = 4.0,
        window: tuple[float, float] | None = None,
        control_spacing: float = 60.0,
        iterations: int = 100,
        samples: int = 20000,
        seed: int = 0,
    ) -> None:
        if transform not in ("affine", "bspline"):
            raise ValueError(f"transform is affine or bspline, not {transform!r}")
        if min(spacing, control_spacing, iterations, samples) <= 0:
            raise ValueError("spacing, control_spacing, iterations and samples must be positive")
        self.store = None if store is None else Path(store)
        self.settings = AlignmentSettings(
            spacing=float(spacing),
            window=None if window is None else (float(window[0]), float(window[1])),
            control_spacing=float(control_spacing) if transform == "bspline" else None,
            iterations=int(iterations),
            samples=int(samples),
            seed=int(seed),
        )
        self._bodies: Recent[Body] = Recent(16)
        self._transforms: Recent[list[sitk.Transform]] = Recent(4096)

    def __getstate__(self) -> dict[str, Any]:
        """What workers get: the settings; SimpleITK's objects stay."""
        return self.__dict__ | {"_bodies": Recent(16), "_transforms": Recent(4096)}

    def __call__(self, source: Mapping[str, Any], target: Mapping[str, Any], points: torch.Tensor) -> Matches:
        """See `Matcher`."""
        require_inside(source, points)
        transforms = self.transforms(source, target)
        if not transforms:
            return Matches(points.float(), torch.zeros(len(points)))
        found = transform_points(transforms, points)
        return Matches(found.float(), read_frame(target).contains(found).float())

    def transforms(self, source: Mapping[str, Any], target: Mapping[str, Any]) -> list[sitk.Transform]:
        """From the source's points to the target's, to be applied in turn, in LPS; from the store, or computed.

        Empty where the pair cannot be registered.
        """
        return self._transforms.get((item_key(source), item_key(target)), lambda: self._stored(source, target))

    def _stored(self, source: Mapping[str, Any], target: Mapping[str, Any]) -> list[sitk.Transform]:
        if self.store is None:
            return self._registered(source, target)
        key = fingerprint([METHOD, asdict(self.settings), content_hash(source), content_hash(target)])
        file = self.store / f"{key[:32]}.json"
        if file.is_file():
            try:
                return _read(file)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                logger.warning("%s is damaged (%s): registering anew", file, error)
        transforms = self._registered(source, target)
        _write(file, transforms, {"source": str(source["image"]), "target": str(target["image"])})
        return transforms

    def _registered(self, source: Mapping[str, Any], target: Mapping[str, Any]) -> list[sitk.Transform]:
        try:
            return align(self._body(source), self._body(target), self.settings)
        except AlignmentError as error:
            logger.warning("%s", error)
            return []

    def _body(self, item: Mapping[str, Any]) -> Body:
        return self._bodies.get(item_key(item), lambda: prepare_body(item, self.settings))


def _write(file: Path, transforms: Sequence[sitk.Transform], pair: Mapping[str, str]) -> None:
    """Write the transforms' numbers, with their checksum, whole or not at all."""
    content = [
        {"type": t.GetName(), "parameters": list(t.GetParameters()), "fixed": list(t.GetFixedParameters())}
        for t in transforms
    ]
    record = {**pair, "transforms": content, "sha256": fingerprint(content)}
    with atomic_write(file) as stream:
        stream.write(json.dumps(record).encode())


def _read(file: Path) -> list[sitk.Transform]:
    """The transforms in a file; raises one of many errors where it is damaged."""
    record = json.loads(file.read_text(encoding="utf-8"))
    if fingerprint(record["transforms"]) != record["sha256"]:
        raise ValueError("its checksum is wrong")
    transforms = []
    for content in record["transforms"]:
        transform = _KINDS[content["type"]]()
        transform.SetFixedParameters(content["fixed"])
        transform.SetParameters(content["parameters"])
        transforms.append(transform)
    return transforms
