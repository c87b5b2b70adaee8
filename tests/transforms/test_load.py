"""Every way in which an image can be bad gives one line that names the file and the cause."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from anatomy_ssl.data.reading import BadImageError, SimpleITKReader, check_affine, read_image
from anatomy_ssl.handlers.embeddings import save_rgb
from anatomy_ssl.transforms import AnatomicalOrigind, ForegroundPointsd, LabelPointsd, LoadVolumed
from tests.volumes import smooth_volume


def load(path: str, **kwargs):
    """The volume that LoadVolumed gives."""
    return LoadVolumed("image", **kwargs)({"image": path})["image"]


def with_header(path: str, **fields) -> str:
    """Overwrite fields of a NIfTI header in place, past nibabel's checks."""
    raw = bytearray(gzip.decompress(Path(path).read_bytes()))
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for key, value in fields.items():
        header[key] = value
    raw[:348] = header.binaryblock
    Path(path).write_bytes(gzip.compress(bytes(raw)))
    return path


def sheared() -> np.ndarray:
    """A tilted gantry."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 0.5
    return affine


def test_good_volume(write_nifti) -> None:
    """float32, channel first, with the true affine."""
    volume = load(write_nifti())
    assert volume.dtype == torch.float32
    assert volume.shape == (1, 24, 20, 28)
    assert torch.equal(volume.affine, torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64)))


def bad_files(write, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Name of the fault -> (file, what its message must say)."""
    truncated = write("truncated.nii.gz")
    whole = Path(truncated).read_bytes()
    Path(truncated).write_bytes(whole[: len(whole) // 2])
    damaged = write("damaged.nii.gz")
    whole = bytearray(Path(damaged).read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 50] = bytes(50)
    Path(damaged).write_bytes(whole)
    empty = tmp_path / "empty.nii"
    empty.touch()
    garbage = tmp_path / "garbage.nii.gz"
    garbage.write_bytes(b"not an image at all" * 40)
    nan = smooth_volume((8, 8, 8)).astype(np.float32)
    nan[1, 2, 3], nan[2, 2, 2] = np.nan, np.inf
    zero = with_header(write("zero.nii.gz"), qform_code=0, sform_code=1, srow_x=[0, 0, 0, 0])
    singular = with_header(
        write("singular.nii.gz"), qform_code=0, sform_code=1, srow_x=[2, 2, 0, 0], srow_y=[2, 2, 0, 0]
    )
    return {
        "missing": (str(tmp_path / "missing.nii.gz"), "does not exist"),
        "truncated": (truncated, "truncated"),
        "damaged": (damaged, "cannot be read"),
        "garbage": (str(garbage), "cannot be read"),
        "empty": (str(empty), "cannot be read"),
        "4d": (write("series.nii.gz", np.stack([smooth_volume((8, 8, 8))] * 3, -1)), "3 channels"),
        "2d": (write("flat.nii.gz", smooth_volume((8, 8))), "2 spatial axes"),
        "nan": (write("nan.nii.gz", nan), "2 of its voxels are NaN or infinite"),
        "sheared": (write("sheared.nii.gz", affine=sheared()), "sheared"),
        "zero spacing": (zero, "spacing is zero"),
        "singular": (singular, "singular"),
    }


@pytest.mark.parametrize(
    "fault",
    ["missing", "truncated", "damaged", "garbage", "empty", "4d", "2d", "nan", "sheared", "zero spacing", "singular"],
)
def test_bad_file_gives_one_line_with_file_and_cause(fault: str, write_nifti, tmp_path: Path) -> None:
    """And nothing else."""
    path, words = bad_files(write_nifti, tmp_path)[fault]
    with pytest.raises(BadImageError) as caught:
        load(path)
    message = str(caught.value)
    assert Path(path).name in message
    assert words in message
    assert "\n" not in message


def test_four_channels_where_the_network_takes_four(write_nifti) -> None:
    """A 4D file is bad only if the network does not take its channels."""
    path = write_nifti("brats.nii.gz", np.stack([smooth_volume((8, 8, 8))] * 4, -1))
    assert load(path, channels=4).shape == (4, 8, 8, 8)
    assert load(path, channels=None).shape == (4, 8, 8, 8)


def test_oblique_rotations_are_not_sheared() -> None:
    """Any rotation with any spacing passes."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        affine = nib.affines.from_matvec(rotation @ np.diag(rng.uniform(0.3, 8, 3)), rng.normal(size=3))
        assert check_affine(affine.astype(np.float32), 3) is None


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "nii.gz"])
def test_formats_agree_on_geometry(suffix: str, tmp_path: Path) -> None:
    """SimpleITK's LPS is turned to RAS: every format gives nibabel's affine and values."""
    array = smooth_volume((6, 7, 8))
    affine = nib.affines.from_matvec(
        np.array([[0.0, -0.8, 0.6], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]) @ np.diag([1.0, 2.0, 3.0]), [5.0, -6.0, 7.0]
    )
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "reference.nii.gz")
    path = tmp_path / f"other.{suffix}"
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "reference.nii.gz")), str(path))
    volume = read_image(path)
    assert np.allclose(volume.affine, affine, atol=1e-4)
    assert np.array_equal(volume[0].numpy(), array)


def test_dicom_series_has_the_same_geometry(tmp_path: Path) -> None:
    """A folder with one series, and the list of its files in any order of names."""
    array = smooth_volume((6, 7, 5))
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing((1.5, 2.0, 4.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    folder = tmp_path / "series"
    folder.mkdir()
    for i in range(image.GetDepth()):
        piece = image[:, :, i : i + 1]
        piece.SetMetaData("0020|000e", "1.2.826.0.1.3680043.2.1125.1")
        piece.SetMetaData("0020|0013", str(i))
        piece.SetMetaData("0020|0032", "\\".join(str(v) for v in image.TransformIndexToPhysicalPoint((0, 0, i))))
        piece.SetMetaData("0020|0037", "1\\0\\0\\0\\1\\0")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{9 - i}.dcm"))
        writer.Execute(piece)
    volume = read_image(folder)
    assert np.array_equal(volume[0].numpy(), array)
    expected = np.diag([-1.5, -2.0, 4.0, 1.0])
    expected[:3, 3] = [-10.0, 20.0, 30.0]
    assert np.allclose(volume.affine, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("places", "step", "cause"),
    [
        ((0, 1, 2, 3, 4, 5), (0.0, 0.0, 3.0), None),
        ((0, 1, 2, 3, 4, 5), (0.0, 0.004, 3.0), None),
        ((0, 1, 4, 5, 6, 7), (0.0, 0.0, 3.0), "missing"),
        ((0, 1, 2, 3, 4, 5), (0.0, 1.0, 3.0), "tilted gantry"),
    ],
)
def test_dicom_slices_have_to_make_a_volume(
    places: tuple[int, ...], step: tuple[float, ...], cause: str | None, tmp_path: Path
) -> None:
    """SimpleITK stretches over missing slices and stands a tilted gantry upright, with a warning at most."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i, place in enumerate(places):
        piece = sitk.Image([8, 8], sitk.sitkInt16)
        position = "\\".join(f"{place * s:g}" for s in step)
        tags = {"0008|0060": "CT", "0020|000d": "1.2", "0020|000e": "1.2.3", "0008|0018": f"1.2.3.{i + 1}"}
        tags |= {"0020|0032": position, "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(i)}
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(tmp_path / f"{i}.dcm"))
        writer.Execute(piece)
    if cause is None:
        assert read_image(tmp_path).pixdim.tolist() == pytest.approx([1.0, 1.0, 3.0], abs=1e-4)
    else:
        with pytest.raises(BadImageError, match=cause) as caught:
            read_image(tmp_path)
        assert str(caught.value).startswith(str(tmp_path))


def test_a_colour_nifti_is_a_bad_image(tmp_path: Path) -> None:
    """RGB24, such as the maps of embeddings that lie beside the scans."""
    save_rgb(np.zeros((4, 4, 4, 3), np.uint8), np.eye(4), tmp_path / "p_pca.nii.gz")
    with pytest.raises(BadImageError, match=r"p_pca\.nii\.gz: cannot be read"):
        read_image(tmp_path / "p_pca.nii.gz")


def test_two_series_in_a_folder_are_refused(tmp_path: Path) -> None:
    """Which one is meant cannot be guessed."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadImageError, match="0 DICOM series"):
        read_image(tmp_path / "empty")


def test_simpleitk_reads_vector_images_channel_last(tmp_path: Path) -> None:
    """Colour and vector volumes keep their axes."""
    array = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array.transpose(2, 1, 0, 3), isVector=True), str(tmp_path / "v.mha"))
    reader = SimpleITKReader()
    data, _ = reader.get_data(reader.read(str(tmp_path / "v.mha")))
    assert np.array_equal(data, array)
    assert read_image(tmp_path / "v.mha").shape == (3, 5, 6, 7)


def test_png_is_a_two_dimensional_image(tmp_path: Path) -> None:
    """Radiographs load in 2D."""
    image = pytest.importorskip("PIL.Image")
    image.fromarray(smooth_volume((30, 20)).clip(0, 255).astype(np.uint8)).save(tmp_path / "x.png")
    assert load(str(tmp_path / "x.png"), spatial_dims=2).shape == (1, 20, 30)


def test_foreground_fills_the_body_and_only_the_body(write_nifti) -> None:
    """A dark cavity inside (a lung) counts as body; the air around does not."""
    axes = np.meshgrid(*[np.arange(40)] * 3, indexing="ij")
    radius = np.sqrt(sum((a - 20.0) ** 2 for a in axes))
    body = np.where(radius < 15, 50, -1000)
    body[radius < 7] = -900
    data = LoadVolumed("image")({"image": write_nifti("b.nii.gz", body.astype(np.int16), np.diag([3.0, 3.0, 3.0, 1]))})
    points = ForegroundPointsd("image", step=3.0)(data)["foreground"]
    distance = (points - 60.0).norm(dim=1)
    assert distance.max() < 45 + 1e-3
    assert (distance < 20).any()
    assert len(points) == (radius < 15).sum()


def test_empty_foreground_is_named(write_nifti) -> None:
    """A constant volume has none."""
    data = LoadVolumed("image")({"image": write_nifti("void.nii.gz", np.zeros((9, 9, 9), np.int16))})
    with pytest.raises(BadImageError, match=r"void\.nii\.gz: its foreground is empty"):
        ForegroundPointsd("image")(data)


def test_origin_from_label_or_datalist(write_nifti) -> None:
    """The centroid of a label in world mm; what the datalist gives is kept; an absent label is an error."""
    label = np.zeros((10, 10, 10), np.uint8)
    label[2:5, 3, 4] = 7
    item = LoadVolumed("label")({"label": write_nifti("l.nii.gz", label)})
    assert torch.allclose(AnatomicalOrigind("label", [7])(item)["origin"], torch.tensor([6.0, 6.0, 12.0]))
    assert AnatomicalOrigind("label", [7])({**item, "origin": [1, 2, 3]})["origin"].tolist() == [1, 2, 3]
    assert len(LabelPointsd("label", labels=[7])(item)["label_points"]) == 3
    with pytest.raises(BadImageError, match=r"l\.nii\.gz: labels \[9\] are absent"):
        AnatomicalOrigind("label", [9])(item)
