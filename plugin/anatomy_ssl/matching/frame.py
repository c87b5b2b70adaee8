"""Where a volume lies in the world, from its header alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel as nib
import torch
from monai.data.utils import correct_nifti_header_if_necessary, to_affine_nd

from anatomy_ssl.data.reading import BadImageError, check_affine, first_path, read_image
from anatomy_ssl.transforms.crops import world_to_voxel

__all__ = ["Frame", "read_frame", "require_inside"]


@dataclass(frozen=True, eq=False)
class Frame:
    """A volume's place.

    Args:
        affine: `(D + 1, D + 1)` float64, voxel index to world mm (RAS+).
        shape: voxels along each of the D axes.
        path: the file, for messages.
    """

    affine: torch.Tensor
    shape: tuple[int, ...]
    path: str = ""

    def contains(self, points: torch.Tensor) -> torch.Tensor:
        """Whether points `(N, D)` in world mm lie in a voxel of the volume, boolean `(N,)`."""
        frame = self.with_axes(points.shape[1])
        index = world_to_voxel(frame.affine, points)
        edge = torch.tensor(frame.shape, dtype=torch.float64) - 0.5
        return ((index >= -0.5 - 1e-6) & (index <= edge + 1e-6)).all(dim=1)

    def with_axes(self, dims: int) -> Frame:
        """The place of what `LoadVolumed` gives for so many axes: radiographs of DICOM lose their third."""
        if dims == 2 and len(self.shape) == 3 and self.shape[2] == 1:
            return Frame(torch.as_tensor(to_affine_nd(2, self.affine)), self.shape[:2], self.path)
        return self

    def spacing(self) -> tuple[float, ...]:
        """Mm between voxels along each axis."""
        return tuple(torch.linalg.vector_norm(self.affine[:-1, :-1], dim=0).tolist())


def read_frame(item: Mapping[str, Any]) -> Frame:
    """The place of an item's `image`; of NIfTI files only the header is read.

    Raises:
        BadImageError: the file is missing, damaged, or its affine places nothing.
    """
    image = item["image"]
    file = first_path(image)
    if not file.exists():
        raise BadImageError(image, "the file does not exist")
    known = (tuple(image) if isinstance(image, (list, tuple)) else str(image), os.stat(file).st_mtime_ns)
    return _read(*known)


@lru_cache(maxsize=4096)
def _read(image: str | tuple[str, ...], changed: int) -> Frame:
    """The place of a file as it was when it was last changed."""
    if isinstance(image, str) and image.lower().endswith((".nii", ".nii.gz")):
        try:
            header: Any = correct_nifti_header_if_necessary(nib.load(image))
        except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
            raise BadImageError(image, f"cannot be read ({error})") from error
        affine, shape = torch.as_tensor(header.affine, dtype=torch.float64), tuple(int(n) for n in header.shape[:3])
    else:
        volume = read_image(list(image) if isinstance(image, tuple) else image)
        affine, shape = volume.affine.to(torch.float64), tuple(volume.shape[1:])
    affine = torch.as_tensor(to_affine_nd(len(shape), affine))
    problem = check_affine(affine, len(shape))
    if problem:
        raise BadImageError(image, problem)
    return Frame(affine, shape, str(first_path(image)))


def require_inside(item: Mapping[str, Any], points: torch.Tensor) -> None:
    """Refuse points `(N, D)` in world mm that an item's volume does not show.

    Raises:
        ValueError: names the file and the first such point.
    """
    frame = read_frame(item).with_axes(points.shape[-1])
    dims = len(frame.shape)
    if points.ndim != 2 or points.shape[1] != dims:
        raise ValueError(
            f"{frame.path} has {dims} axes: its points are (N, {dims}) in world mm, not {tuple(points.shape)}"
        )
    if not torch.isfinite(points).all():
        raise ValueError(f"points in {frame.path} are not finite: give world mm")
    outside = ~frame.contains(points)
    if outside.any():
        place = ", ".join(f"{v:.1f}" for v in points[outside][0].tolist())
        raise ValueError(
            f"{int(outside.sum())} of {len(points)} points lie outside of {frame.path}, the first at ({place}): give "
            "points in world mm (RAS+) that this volume shows"
        )
