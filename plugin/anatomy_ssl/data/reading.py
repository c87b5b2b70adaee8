"""Reading images with true geometry, and refusing the ones that lie about it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from isal import isal_zlib
from monai.config import PathLike
from monai.data import ImageReader, MetaTensor, NibabelReader, PILReader
from monai.data.utils import correct_nifti_header_if_necessary, to_affine_nd
from monai.transforms import LoadImage
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from anatomy_ssl.data.nifti import c_ordered, exact_dtype, open_nifti, voxels

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NIFTI = (".nii", ".nii.gz")
_UNREADABLE: tuple[Any, ...] = (
    *(OSError, EOFError, TypeError, ValueError, RuntimeError),
    *(zlib.error, isal_zlib.error, nib.filebasedimages.ImageFileError),
)
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
# cosine between two voxel axes from which a volume counts as sheared (0.6 degrees; headers are rounded to float32)
_SHEAR_TOLERANCE = 1e-2
_SLICE_POSITION = "0020|0032"
# deviation of a slice's step from the mean step, of which it is a part; headers round positions
_SLICE_TOLERANCE = 0.1


class BadImageError(ValueError):
    """An image that cannot be used. The message is one line that names the file and the cause."""

    def __init__(self, path: Any, cause: str) -> None:
        self.path, self.cause = str(first_path(path)), " ".join(str(cause).split())
        super().__init__(f"{self.path}: {self.cause}")

    def __reduce__(self) -> tuple[type[BadImageError], tuple[str, str]]:
        """Survive the way from a data loader's worker process."""
        return type(self), (self.path, self.cause)


def as_bad_image(error: BaseException, item: Mapping[str, Any]) -> BadImageError | None:
    """The bad image behind an error of MONAI's transform chain; None where the fault is not the image's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BadImageError):
            known = cause.path in ("image", "volume", "")
            return BadImageError(first_path(item["image"]), cause.cause) if known else cause
        cause = cause.__cause__ or cause.__context__
    return None


def first_path(image: PathLike | Sequence[PathLike]) -> Path:
    """The file or folder that an image is known by (a DICOM series may be a list of files)."""
    return Path(str(ensure_tuple(image)[0]))


class SimpleITKReader(ImageReader):
    """MONAI image reader on SimpleITK: NRRD, MetaImage and DICOM series (a folder, or the list of one series' files).

    MONAI's own readers for these need itk, pynrrd or pydicom besides. SimpleITK's LPS is turned to RAS here and nowhere
    else. Arrays are channel last, axes in (x, y[, z]) order.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Everything that is not NIfTI or a picture is left to SimpleITK, which knows files by their content."""
        return not first_path(filename).name.lower().endswith((*_NIFTI, *_PICTURES, ".npy", ".npz"))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> sitk.Image:
        """Read one file, one folder with one DICOM series, or the sorted files of one series.

        Raises:
            ValueError: when a folder holds no DICOM series, or more than one.
            BadImageError: when the slices of a series do not make a right-angled volume.
        """
        files = [str(p) for p in ensure_tuple(data)]
        if len(files) == 1 and Path(files[0]).is_dir():
            series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(files[0])
            if len(series) != 1:
                raise ValueError(f"the folder holds {len(series)} DICOM series, not one; list the files of one series")
            files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(files[0], series[0]))
        return read_series(files) if len(files) > 1 else sitk.ReadImage(files[0])

    def get_data(self, img: sitk.Image) -> tuple[np.ndarray, dict]:
        """Array of shape `(x, y[, z][, channels])` and MONAI's metadata with the affine in RAS."""
        array = sitk.GetArrayFromImage(img)
        dim, channels = img.GetDimension(), img.GetNumberOfComponentsPerPixel() > 1
        array = np.moveaxis(array, -1, 0).T if channels else array.T
        if channels:
            array = np.ascontiguousarray(array)
        affine = np.eye(4)
        n = min(dim, 3)
        direction = np.asarray(img.GetDirection()).reshape(dim, dim)[:n, :n]
        affine[:n, :n] = direction * np.asarray(img.GetSpacing())[:n]
        affine[:n, 3] = np.asarray(img.GetOrigin())[:n]
        meta = {
            MetaKeys.AFFINE: _LPS_TO_RAS @ affine,
            MetaKeys.ORIGINAL_AFFINE: _LPS_TO_RAS @ affine,
            MetaKeys.SPATIAL_SHAPE: np.asarray(img.GetSize()),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if channels else float("nan"),
        }
        return array, meta


def read_series(files: Sequence[str]) -> sitk.Image:
    """Read the slices of a DICOM series, in spatial order, whose positions are as a volume's with one spacing.

    SimpleITK takes the spacing from the first and the last slice and the third axis from the slices' normal: missing
    slices would stretch the rest, and a tilted gantry would be stood upright, with no more than a warning.

    Raises:
        BadImageError: when slices are missing, unevenly spaced or out of order, or the gantry was tilted.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if not all(reader.HasMetaDataKey(i, _SLICE_POSITION) for i in range(len(files))):
        return image
    texts = [reader.GetMetaData(i, _SLICE_POSITION) for i in range(len(files))]
    steps = np.diff([[float(v) for v in text.split("\\")] for text in texts], axis=0)
    length = float(np.linalg.norm(steps.mean(axis=0)))
    if np.abs(steps - steps.mean(axis=0)).max() > _SLICE_TOLERANCE * length:
        raise BadImageError(files, "its DICOM slices are missing, unevenly spaced or out of order: complete the series")
    normal = np.asarray(image.GetDirection()).reshape(3, 3)[:, 2]
    if np.linalg.norm(np.cross(steps.mean(axis=0), normal)) > _SHEAR_TOLERANCE * length:
        raise BadImageError(files, "its DICOM slices are sheared (tilted gantry): resample it to right-angled voxels")
    return image


class NiftiReader(NibabelReader):
    """MONAI's reader with every file read once: compressed ones are inflated in memory, to their checksum."""

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """The nibabel image of a file, or the images of several.

        Raises:
            BadImageError: when an affine places nothing. MONAI mends headers whose spacing and affine disagree, and
                would mend such ones, too.
        """
        self.filenames = ensure_tuple(data)
        images = []
        for name in self.filenames:
            image = open_nifti(Path(str(name)))
            problem = check_affine(image.affine, 3)
            if problem:
                raise BadImageError(name, problem)
            images.append(correct_nifti_header_if_necessary(image))
        return images if len(images) > 1 else images[0]

    def _get_array_data(self, img: Any, filename: Any = None) -> np.ndarray:
        return voxels(img)


class TypedReader(ImageReader):
    """Another reader, whose arrays come in the type that a tensor has in the end: one pass, where MONAI takes three.

    Args:
        reader: any of MONAI's or of the above.
        keep_integers: see `read_image`.
    """

    def __init__(self, reader: ImageReader, keep_integers: bool) -> None:
        self.reader, self.keep_integers = reader, keep_integers

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """As of the other."""
        return self.reader.verify_suffix(filename)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """As of the other."""
        return self.reader.read(data, **kwargs)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """The other's array, C ordered, in its final type, and the other's metadata."""
        array, meta = self.reader.get_data(img)
        return c_ordered(array, exact_dtype(array) if self.keep_integers else np.dtype(np.float32)), meta


@lru_cache(maxsize=1)
def _loader() -> LoadImage:
    """One loader for all images: making it looks for every optional reader and warns of those that are absent."""
    return LoadImage(image_only=True, dtype=None, ensure_channel_first=True)


def read_image(path: PathLike | Sequence[PathLike], keep_integers: bool = False) -> MetaTensor:
    """Read any supported image, channel first, with its affine (voxel to world mm, RAS+).

    NIfTI by nibabel, PNG and JPEG by Pillow, everything else by SimpleITK.

    Args:
        path: file, folder of one DICOM series, or list of the files of one.
        keep_integers: False gives float32. True gives integers that the file holds unscaled as they are: 8 bits or
            int16 in their type, wider ones as int16 or int32, by their values; all else float32.

    Raises:
        BadImageError: when the file is missing, damaged or of an unknown kind.
    """
    file = first_path(path)
    if not file.exists():
        raise BadImageError(path, "the file does not exist")
    name = file.name.lower()
    reader: ImageReader
    if name.endswith(_NIFTI):
        reader = NiftiReader()
    elif name.endswith(_PICTURES):
        reader = PILReader()
    else:
        reader = SimpleITKReader()
    try:
        return _loader()(path, reader=TypedReader(reader, keep_integers))
    except BadImageError:
        raise
    except _UNREADABLE as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BadImageError(path, f"cannot be read ({cause}); it may be truncated or of another format") from error


def check_affine(affine: torch.Tensor | np.ndarray, spatial_dims: int) -> str | None:
    """What is wrong with a voxel-to-world matrix `(D + 1, D + 1)` in mm, or None.

    The voxel axes have to be finite, of non-zero length and at right angles: a sheared volume (a tilted gantry) has no
    spacing, and a singular one no place in space.
    """
    axes = np.asarray(affine, dtype=np.float64)[:spatial_dims, :spatial_dims]
    if not np.isfinite(np.asarray(affine, dtype=np.float64)).all():
        return "its affine holds NaN or infinity"
    spacing = np.linalg.norm(axes, axis=0)
    if (spacing < 1e-6).any():
        return f"its voxel spacing is zero along an axis ({', '.join(f'{s:g}' for s in spacing)} mm)"
    cosines = (axes / spacing).T @ (axes / spacing)
    if abs(np.linalg.det(axes / spacing)) < 1e-3:
        return "its affine is singular: two voxel axes point the same way"
    if np.abs(cosines - np.eye(spatial_dims)).max() > _SHEAR_TOLERANCE:
        return "its affine is sheared (tilted gantry): resample it to right-angled voxels first"
    return None


def check_volume(volume: MetaTensor, path: Any, spatial_dims: int = 3, channels: int | None = 1) -> MetaTensor:
    """Return the volume if its shape, geometry and values can be trusted.

    Args:
        volume: `(C, *spatial)` with affine. A singleton third axis is dropped where `spatial_dims` is 2.
        path: the file, for the message.
        spatial_dims: 2 or 3.
        channels: number of channels that the network takes; None accepts any.

    Raises:
        BadImageError: when anything is wrong; it names file, cause and remedy.
    """
    if spatial_dims == 2 and volume.ndim == 4 and volume.shape[-1] == 1:
        # MONAI's SaveImage would take the channel of a result for an axis where spatial_shape has as many numbers
        shape = np.asarray(volume.shape[1:3])
        meta = {**volume.meta, MetaKeys.AFFINE: to_affine_nd(2, volume.affine), MetaKeys.SPATIAL_SHAPE: shape}
        volume = MetaTensor(volume.as_tensor()[..., 0], meta=meta)
    if volume.ndim != spatial_dims + 1:
        raise BadImageError(path, f"has {volume.ndim - 1} spatial axes, {spatial_dims} are expected")
    if channels is not None and volume.shape[0] != channels:
        raise BadImageError(
            path,
            f"has {volume.shape[0]} channels or time points (a 4D file?), the network takes {channels}: set `channels` "
            "to that number, or split the file",
        )
    problem = check_affine(volume.affine, spatial_dims)
    if problem:
        raise BadImageError(path, problem)
    values = volume.as_tensor()
    # lowest and highest are NaN where anything is, and much faster found than what is finite
    if values.is_floating_point() and not torch.stack(torch.aminmax(values)).isfinite().all():
        count = int((~values.isfinite()).sum())
        raise BadImageError(path, f"{count} of its voxels are NaN or infinite: clean or leave it out")
    return volume
