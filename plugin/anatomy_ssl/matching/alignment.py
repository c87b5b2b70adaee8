"""Laying one body upon another: affine, then B-spline, by mutual information (SimpleITK; LPS within this module)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd

from anatomy_ssl.data.reading import BadImageError, first_path
from anatomy_ssl.transforms.load import LoadVolumed
from anatomy_ssl.transforms.points import body_mask

__all__ = ["AlignmentError", "AlignmentSettings", "Body", "align", "prepare_body", "transform_points"]

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# mm: here a body is a few thousand voxels, and many starts can be tried
_COARSE = 16.0
_SHRINK = (4, 2, 1)


@dataclass(frozen=True)
class AlignmentSettings:
    """How bodies are aligned.

    Args:
        spacing: mm between voxels of the volumes that are compared.
        window: intensities (low, high) that count, such as (-1000.0, 1000.0) HU; None takes the 1st and the 99th
            percentile of each body.
        control_spacing: mm between control points of the B-spline that follows the affine transform; None for none.
        iterations: of the optimiser at each of three levels, four times as coarse, twice as coarse, and at `spacing`.
        spline_iterations: likewise, of the B-spline's, at the two finer levels.
        bins: of the intensities' joint histogram.
        samples: voxels of the source's body that are compared at the finest level.
        seed: of their draw.
    """

    spacing: float = 4.0
    window: tuple[float, float] | None = None
    control_spacing: float | None = None
    iterations: int = 100
    spline_iterations: int = 15
    bins: int = 32
    samples: int = 20000
    seed: int = 0


class AlignmentError(ValueError):
    """Two bodies that cannot be laid upon each other."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A resampled volume, in LPS.

    Args:
        image: float32, 0 to 1.
        body: uint8, 1 in the body.
    """

    image: sitk.Image
    body: sitk.Image


@dataclass(frozen=True, eq=False)
class Body:
    """A volume made ready.

    Args:
        fine: at the settings' spacing.
        coarse: for the search of a start.
        path: the file, for messages.
    """

    fine: Volume
    coarse: Volume
    path: str


def prepare_body(item: Mapping[str, Any], settings: AlignmentSettings) -> Body:
    """Read a volume and resample it, smoothed as much, to equal voxels along its own axes nearest to R, A and S.

    Args:
        item: with the path of a volume of one channel under `image`.
        settings: window and spacing.

    Raises:
        BadImageError: it cannot be read, or nothing in it is brighter than the rest.
    """
    # one orientation, one array of numbers, however the volume is stored
    load = Compose([LoadVolumed("image"), Orientationd("image", axcodes="RAS", labels=None)])
    image = _as_sitk(load({"image": item["image"]})["image"])
    path = str(first_path(item["image"]))
    return Body(_volume(image, settings.spacing, settings, path), _volume(image, _COARSE, settings, path), path)


def _volume(image: sitk.Image, spacing: float, settings: AlignmentSettings, path: str) -> Volume:
    """The image at a spacing, its intensities scaled, and where the body is."""
    resampled = _resampled(image, spacing)
    values = sitk.GetArrayFromImage(resampled)
    body = body_mask(values)
    if not body.any():
        raise BadImageError(path, "nothing in it is brighter than its background: there is no body to register")
    low, high = np.percentile(values[body], [1, 99]) if settings.window is None else settings.window
    scaled = ((values - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32)
    return Volume(_like(scaled, resampled), _like(body.astype(np.uint8), resampled))


def _as_sitk(volume: MetaTensor) -> sitk.Image:
    """The first channel `(C, *spatial)` as an image in LPS."""
    matrix = _TO_LPS @ volume.affine.numpy().astype(np.float64)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.as_tensor()[0].numpy().T, dtype=np.float32))
    image.SetSpacing(spacing.tolist())
    # rounded headers are not quite at right angles, which ITK insists on
    u, _, v = np.linalg.svd(matrix[:3, :3] / spacing)
    image.SetDirection((u @ v).ravel().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    return image


def _like(values: np.ndarray, image: sitk.Image) -> sitk.Image:
    """Values in the place of an image."""
    made = sitk.GetImageFromArray(values)
    made.CopyInformation(image)
    return made


def _resampled(image: sitk.Image, spacing: float) -> sitk.Image:
    """The image at another spacing in mm, its outer edges where they were."""
    old = np.array(image.GetSpacing())
    if spacing > old.min():
        # detail finer than the new voxels would fold back into them
        sigma = 0.5 * np.sqrt(np.maximum(spacing**2 - old**2, 1e-6))
        image = sitk.SmoothingRecursiveGaussian(image, np.maximum(sigma, 1e-3).tolist())
    size = [max(1, round(n * s / spacing)) for n, s in zip(image.GetSize(), old)]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    origin = np.array(image.GetOrigin()) + direction @ ((spacing - old) / 2)
    # where rounding makes the grid a little larger, the border goes on
    place = (size, sitk.Transform(), sitk.sitkLinear, origin.tolist(), [spacing] * 3, image.GetDirection())
    return sitk.Resample(image, *place, 0.0, sitk.sitkUnknown, True)


def align(source: Body, target: Body, settings: AlignmentSettings) -> list[sitk.Transform]:
    """Find where each point of the source lies in the target.

    The measure is mutual information in the source's body, of what lies in the target's field of view. The affine
    transform starts from the best of several displacements, since scans may show the body from anywhere to anywhere.

    Args:
        source: the body that the points lie in.
        target: the body that they are looked for in.
        settings: how.

    Returns:
        the transforms to apply in turn, from the source's points to the target's, in LPS.

    Raises:
        AlignmentError: the two cannot be aligned.
    """
    start = _best_start(source, target, settings)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(start.GetCenter())
    affine.SetMatrix(start.GetMatrix())
    affine.SetTranslation(start.GetTranslation())
    method = _method(source.fine, settings, _SHRINK)
    _follow_gradient(method, settings)
    method.SetInitialTransform(affine, True)
    _execute(method, source, target)
    if settings.control_spacing is None:
        return [affine]
    mesh = [max(1, round(n * settings.spacing / settings.control_spacing)) for n in source.fine.image.GetSize()]
    # a margin, since the transform does nothing beyond its domain
    spline = sitk.BSplineTransformInitializer(sitk.ConstantPad(source.fine.image, [2] * 3, [2] * 3), mesh, 3)
    method = _method(source.fine, settings, _SHRINK[1:])
    method.SetOptimizerAsLBFGS2(
        numberOfIterations=settings.spline_iterations, solutionAccuracy=1e-4, lineSearchMaximumEvaluations=8
    )
    method.SetMovingInitialTransform(affine)
    method.SetInitialTransform(spline, True)
    _execute(method, source, target)
    return [spline, affine]


def _best_start(source: Body, target: Body, settings: AlignmentSettings) -> sitk.Euler3DTransform:
    """A displacement that lays the body's heads, feet or middles upon each other, moved to where bodies are alike."""
    (low, high, mean), (low_t, high_t, mean_t) = _extent(source.coarse.body), _extent(target.coarse.body)
    middle, weight = (low_t + high_t - low - high) / 2, mean_t - mean
    ends = [np.array([*middle[:2], end]) for end in (high_t[2] - high[2], low_t[2] - low[2])]
    best, best_value = None, math.inf
    for shift in (middle, weight, *ends):
        transform = sitk.Euler3DTransform()
        transform.SetCenter(mean.tolist())
        transform.SetTranslation(shift.tolist())
        method = _method(source.coarse, settings, (1,))
        _follow_gradient(method, settings)
        method.SetInitialTransform(transform, True)
        try:
            value = _execute(method, source, target, coarse=True)
        except AlignmentError:
            continue
        if value < best_value:
            best, best_value = sitk.Euler3DTransform(transform), value
    if best is None:
        raise AlignmentError(
            f"{source.path} and {target.path} cannot be registered: their bodies have too little in common"
        )
    return best


def _extent(mask: sitk.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest and highest place of a mask along the world's axes, and its mean, mm."""
    index = np.argwhere(sitk.GetArrayFromImage(mask))[:, ::-1]
    direction = np.array(mask.GetDirection()).reshape(3, 3) * mask.GetSpacing()
    places = index @ direction.T + mask.GetOrigin()
    return places.min(0), places.max(0), places.mean(0)


def _method(source: Volume, settings: AlignmentSettings, shrink: Sequence[int]) -> sitk.ImageRegistrationMethod:
    """What both stages share."""
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # sums in one order: the same transform in every run
    method.SetMetricAsMattesMutualInformation(settings.bins)
    # the skin is as telling as anything
    method.SetMetricFixedMask(sitk.BinaryDilate(source.body, [2] * 3))
    voxels = np.prod(source.image.GetSize()) / np.array(shrink, float) ** 3
    share = np.clip(settings.samples / voxels, 1e-4, 1.0)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel(share.tolist(), settings.seed + 1)  # 0 would be the time of day
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel([0.5 * settings.spacing * s if s > 1 else 0.0 for s in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _follow_gradient(method: sitk.ImageRegistrationMethod, settings: AlignmentSettings) -> None:
    """The optimiser of transforms with few parameters."""
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=4.0, minStep=0.02, numberOfIterations=settings.iterations, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()


def _execute(method: sitk.ImageRegistrationMethod, source: Body, target: Body, coarse: bool = False) -> float:
    """Run, and return the final measure (the lower, the more alike)."""
    fixed, moving = (source.coarse, target.coarse) if coarse else (source.fine, target.fine)
    try:
        method.Execute(fixed.image, moving.image)
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1].strip()
        raise AlignmentError(f"{source.path} and {target.path} cannot be registered ({cause})") from error
    return float(method.GetMetricValue())


def transform_points(transforms: Sequence[sitk.Transform], points: torch.Tensor) -> torch.Tensor:
    """Points `(N, 3)` in world mm, RAS+, taken through transforms in LPS, one after the other; float64."""
    signs = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    places = (points.to(torch.float64) * signs).tolist()
    for transform in transforms:
        places = [transform.TransformPoint(place) for place in places]
    return torch.tensor(places, dtype=torch.float64).reshape(-1, 3) * signs
