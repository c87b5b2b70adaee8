"""Files read in one pass are what MONAI's LoadImage makes of them, and integers are kept where they are stored."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from PIL import Image

from anatomy_ssl.data.nifti import c_ordered, exact_dtype, inflate
from anatomy_ssl.data.reading import BadImageError, check_volume, read_image
from anatomy_ssl.transforms.load import LoadVolumed
from tests.volumes import smooth_volume

SHAPE = (7, 6, 5)
AFFINE = nib.affines.from_matvec(
    np.array([[0.0, -0.8, 0.6], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]) @ np.diag([1.0, 2.0, 3.0]), [5.0, -6.0, 7.0]
)


def values_of(dtype: Any, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Something without symmetry; negative where the type can be."""
    array = smooth_volume(shape) / (16 if np.dtype(dtype).itemsize == 1 else 1)
    return (array if np.dtype(dtype).kind in "if" else array.clip(0)).astype(dtype)


def nifti(kind: str) -> nib.Nifti1Image:
    """One image of each kind of header."""
    if kind in ("uint8", "int8", "uint16", "int32", "uint32", "int64", "float32", "float64"):
        return nib.Nifti1Image(values_of(kind), AFFINE, dtype=kind)
    if kind == "big-endian":
        return nib.Nifti1Image(values_of(np.int16), AFFINE, nib.Nifti1Header(endianness=">"), dtype=np.int16)
    if kind == "NIfTI-2":
        return nib.Nifti2Image(values_of(np.int16), AFFINE)
    if kind in ("4D", "2D"):
        return nib.Nifti1Image(values_of(np.int16, (*SHAPE, 3) if kind == "4D" else (7, 6)), AFFINE)
    image = nib.Nifti1Image(values_of(np.int16), AFFINE)
    image.set_sform(AFFINE, code=0 if kind == "qform only" else 1)
    image.set_qform(AFFINE, code=0 if kind == "sform only" else 1)
    if kind == "another spacing":
        image.header["pixdim"][1:4] = [4.0, 4.0, 4.0]
        image.header["qform_code"] = 0
    if kind == "scaled":
        image.header.set_slope_inter(0.5, -100)
    if kind == "extension":
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 300))
    return image


KINDS = ["int16", "uint8", "int8", "uint16", "int32", "uint32", "int64", "float32", "float64", "big-endian", "NIfTI-2"]
KINDS += ["4D", "2D", "sform only", "qform only", "another spacing", "scaled", "extension"]


def written(kind: str, folder: Path, suffix: str) -> Path:
    """The image in a file; scaled ones with their stored integers as they are."""
    image = nifti(kind)
    path = folder / f"scan.{suffix}"
    if kind == "scaled":
        slope, intercept = image.header.get_slope_inter()
        image = nib.Nifti1Image(np.asarray(image.dataobj) * slope + intercept, None, image.header)
        image.header.set_slope_inter(slope, intercept)
    nib.save(image, path)
    return path


def assert_same(one: MetaTensor, other: MetaTensor) -> None:
    """Values, type, affine and every entry of the metadata."""
    assert one.dtype == other.dtype
    assert torch.equal(one.as_tensor(), other.as_tensor())
    assert one.stride() == other.stride()
    assert torch.equal(one.affine, other.affine)
    assert one.affine.dtype == other.affine.dtype
    assert list(one.meta) == list(other.meta)
    for key, value in other.meta.items():
        assert type(one.meta[key]) is type(value), key
        np.testing.assert_array_equal(np.asarray(one.meta[key]), np.asarray(value), err_msg=key)
        assert np.asarray(one.meta[key]).dtype == np.asarray(value).dtype, key
    assert one.applied_operations == other.applied_operations


@pytest.mark.parametrize("suffix", ["nii.gz", "nii"])
@pytest.mark.parametrize("kind", KINDS)
def test_nifti_is_what_load_image_makes_of_it(kind: str, suffix: str, tmp_path: Path) -> None:
    path = written(kind, tmp_path, suffix)
    assert_same(read_image(path), LoadImage(image_only=True, ensure_channel_first=True)(path))


def test_several_files_are_channels(tmp_path: Path) -> None:
    """As with LoadImage."""
    paths = [tmp_path / f"{i}.nii.gz" for i in range(2)]
    for i, path in enumerate(paths):
        nib.save(nib.Nifti1Image(smooth_volume(SHAPE, seed=i), AFFINE), path)
    assert_same(read_image(paths), LoadImage(image_only=True, ensure_channel_first=True)(paths))
    assert read_image(paths, keep_integers=True).dtype == torch.int16


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "I;16"])
def test_pictures_are_what_load_image_makes_of_them(mode: str, tmp_path: Path) -> None:
    array = values_of(np.uint8, (12, 9))
    picture = Image.fromarray(array.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(array).convert(mode)
    picture.save(tmp_path / "x.png")
    assert_same(
        read_image(tmp_path / "x.png"),
        LoadImage(reader="PILReader", image_only=True, ensure_channel_first=True)(tmp_path / "x.png"),
    )
    kept = read_image(tmp_path / "x.png", keep_integers=True)
    assert kept.dtype == (torch.int16 if mode == "I;16" else torch.uint8)
    assert torch.equal(kept.float().as_tensor(), read_image(tmp_path / "x.png").as_tensor())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("int16", torch.int16),
        ("uint8", torch.uint8),
        ("int8", torch.int8),
        ("uint16", torch.int16),
        ("int32", torch.int16),
        ("int64", torch.int16),
        ("big-endian", torch.int16),
        ("NIfTI-2", torch.int16),
        ("4D", torch.int16),
        ("2D", torch.int16),
        ("scaled", torch.float32),
        ("float64", torch.float32),
    ],
)
@pytest.mark.parametrize("suffix", ["nii.gz", "nii"])
def test_integers_are_kept_where_they_are_stored(kind: str, dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    """All but the type is as without."""
    path = written(kind, tmp_path, suffix)
    kept = read_image(path, keep_integers=True)
    assert kept.dtype == dtype
    kept.as_tensor().add_(0)  # their memory is their own
    assert_same(MetaTensor(kept.as_tensor().float(), meta=kept.meta), read_image(path))


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0, 0), (np.nan, 0), (1, -1024)])
def test_slopes_that_change_nothing_keep_integers(slope: float, intercept: float, tmp_path: Path) -> None:
    raw = bytearray(nifti("int16").to_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    raw[:348] = header.binaryblock
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw)))
    kept = read_image(path, keep_integers=True)
    assert kept.dtype == (torch.float32 if intercept else torch.int16)
    assert_same(read_image(path), LoadImage(image_only=True, ensure_channel_first=True)(path))


@pytest.mark.parametrize(
    ("stored", "highest", "kept"),
    [
        (np.uint16, 32767, np.int16),
        (np.uint16, 32768, np.int32),
        (np.int32, 32767, np.int16),
        (np.int32, -32769, np.int32),
        (np.int64, 1 << 24, np.int32),
        (np.int32, (1 << 24) + 1, np.float32),
        (np.int64, -(1 << 40), np.float32),
        (np.uint64, (1 << 63) + 1, np.float32),
        (np.float64, 3, np.float32),
        (np.bool_, True, np.float32),
        (">i2", 3, np.int16),
        (">u2", 40000, np.int32),
    ],
)
def test_the_type_that_holds_the_values(stored: Any, highest: Any, kept: Any) -> None:
    """In which float32 would be the same."""
    array = np.zeros((2, 3, 2), stored, order="F")
    array[1, 2, 1] = highest
    assert exact_dtype(array) == kept
    ordered = c_ordered(array, exact_dtype(array))
    assert ordered.flags.c_contiguous
    assert ordered.dtype.isnative
    assert ordered[1, 2, 1] == np.float32(highest)


def test_arrays_that_need_no_copy_are_not_copied_unless_they_are_read_only() -> None:
    """As those are that share the memory of a file's content."""
    array = np.ones((3, 1, 1), np.int16)
    assert c_ordered(array, array.dtype) is array
    array.flags.writeable = False
    assert c_ordered(array, array.dtype).flags.writeable


@pytest.mark.parametrize(("suffix", "dtype"), [("nrrd", np.int16), ("mha", np.uint16), ("mha", np.float64)])
def test_other_formats_keep_integers(suffix: str, dtype: Any, tmp_path: Path) -> None:
    array = values_of(dtype)
    path = tmp_path / f"x.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(array.T), str(path))
    kept = read_image(path, keep_integers=True)
    assert kept.dtype == (torch.int16 if array.dtype.kind in "iu" else torch.float32)
    assert np.array_equal(kept[0].numpy(), array.astype(np.float32))
    assert np.array_equal(read_image(path)[0].numpy(), array.astype(np.float32))


def test_members_of_a_gzip_file_are_one_file(tmp_path: Path) -> None:
    """Also with zeros between and after them, as tapes have; with anything else after them it is damaged."""
    raw = nifti("int16").to_bytes()
    path = tmp_path / "x.nii.gz"
    members = gzip.compress(raw[:500]) + gzip.compress(raw[500:])
    for content in (members, gzip.compress(raw[:500]) + bytes(7) + gzip.compress(raw[500:]) + bytes(40)):
        path.write_bytes(content)
        assert inflate(path) == raw
        assert np.array_equal(read_image(path, keep_integers=True)[0].numpy(), values_of(np.int16))
    for end in (b"x", b"some words", members[:100]):
        path.write_bytes(members + end)
        with pytest.raises(BadImageError, match=r"x\.nii\.gz: cannot be read"):
            read_image(path)


@pytest.mark.parametrize("bit", [0, 3])
def test_every_damaged_byte_is_found(bit: int, tmp_path: Path) -> None:
    """Of the compressed voxels, the checksum and the length; a gzip header's time and system tell nothing."""
    path = tmp_path / "x.nii.gz"
    sound = gzip.compress(nifti("uint8").to_bytes(), mtime=0)
    for at in [0, 1, 2, *range(10, len(sound), 7), *range(len(sound) - 8, len(sound))]:
        damaged = bytearray(sound)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(BadImageError, match="cannot be read") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 3, 12, 100, -8, -4, -1])
def test_every_truncation_is_found(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(nifti("uint8").to_bytes())[:length])
    with pytest.raises(BadImageError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["nii.gz", "nii"])
def test_voxels_that_the_header_promises_are_missing(suffix: str, tmp_path: Path) -> None:
    """A sound gzip file of a truncated image."""
    path = tmp_path / f"x.{suffix}"
    raw = nifti("int16").to_bytes()[:-20]
    path.write_bytes(gzip.compress(raw) if suffix == "nii.gz" else raw)
    for keep_integers in (False, True):
        with pytest.raises(BadImageError, match="cannot be read"):
            read_image(path, keep_integers)


def test_what_is_no_nifti(tmp_path: Path) -> None:
    """A sound gzip file of something else, and a file that is not compressed."""
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(b"not an image at all" * 40))
    with pytest.raises(BadImageError, match="Cannot work out file type"):
        read_image(path)
    path.write_bytes(nifti("int16").to_bytes())
    with pytest.raises(BadImageError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted(bad: float) -> None:
    """In floats; integers hold none."""
    values = torch.zeros(1, 4, 4, 4)
    values[0, 1, 2, 3] = bad
    with pytest.raises(BadImageError, match="1 of its voxels are NaN or infinite"):
        check_volume(MetaTensor(values), "x.nii")
    whole = MetaTensor(torch.zeros(1, 4, 4, 4, dtype=torch.int16))
    assert check_volume(whole, "x.nii") is whole


def test_integers_keep_their_type_on_the_way_to_the_crops(tmp_path: Path) -> None:
    """Loaded by the transform and turned to RAS; with a third axis of one voxel dropped."""
    nib.save(nifti("int16"), tmp_path / "x.nii.gz")
    kept, floats = (
        Orientation(axcodes="RAS", labels=None)(
            LoadVolumed("image", keep_integers=keep)({"image": str(tmp_path / "x.nii.gz")})["image"]
        )
        for keep in (True, False)
    )
    assert (kept.dtype, floats.dtype) == (torch.int16, torch.float32)
    assert torch.equal(kept.as_tensor().float(), floats.as_tensor())
    assert torch.equal(kept.affine, floats.affine)
    nib.save(nib.Nifti1Image(values_of(np.uint8, (7, 6, 1)), AFFINE), tmp_path / "flat.nii.gz")
    load = LoadVolumed("image", spatial_dims=2, keep_integers=True)
    flat = load({"image": str(tmp_path / "flat.nii.gz")})["image"]
    assert (flat.shape, flat.dtype) == ((1, 7, 6), torch.uint8)
