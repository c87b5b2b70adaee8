"""embed.yaml: a folder of scans of any format becomes tables of embeddings and pictures in the body's space."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigParser
from scipy.spatial import cKDTree

from anatomy_ssl.data.embeddings import Embeddings
from tests.bundles.runs import CONFIGS, TINY

SCANS = ("nifti", "turned", "nrrd", "metaimage", "dicom")


def write_dicom(image: sitk.Image, folder: Path) -> None:
    """A volume with axes along L, P and S as one file for each slice."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    uid = "1.2.826.0.1.3680043.2.1125.1"
    for z in range(image.GetDepth()):
        part = image[:, :, z]
        place = image.TransformIndexToPhysicalPoint((0, 0, z))
        tags = {"0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0008|0018": f"{uid}.{z}", "0008|0060": "CT"}
        tags |= {"0010|0020": "dicom", "0020|000d": f"{uid}.98", "0020|000e": f"{uid}.99", "0020|0013": str(z)}
        tags |= {"0020|0032": "\\".join(f"{p:.6f}" for p in place), "0020|0037": "1\\0\\0\\0\\1\\0"}
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(part)


@pytest.fixture(scope="module")
def scans(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom in five forms, nested."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "deep" / "deeper").mkdir(parents=True)
    image = sitk.ReadImage(str(cohort / "images" / "phantom_000.nii.gz"), sitk.sitkInt16)
    sitk.WriteImage(image, str(folder / "nifti.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, "SAR"), str(folder / "turned.nii"))
    sitk.WriteImage(image, str(folder / "deep" / "nrrd.nrrd"))
    sitk.WriteImage(image, str(folder / "deep" / "deeper" / "metaimage.mha"))
    write_dicom(sitk.DICOMOrient(image, "LPS"), folder / "deep" / "series")
    return folder


@pytest.fixture(scope="module")
def embedded(encoder: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What embed.yaml writes for them."""
    output = tmp_path_factory.mktemp("embeddings")
    changes = {key: TINY[key] for key in ("crop_size", "crop_spacing", "encoder", "device")}
    changes |= {"checkpoint": str(encoder), "step": 2}
    config = str(CONFIGS / "embed.yaml")
    monai.bundle.run("embedding", config_file=config, dataset_dir=str(scans), output_dir=str(output), **changes)
    return output


def test_three_files_for_each_scan(embedded: Path) -> None:
    expected = {f"{name}{end}" for name in SCANS for end in (".npz", ".csv", "_pca.nii.gz")}
    assert {file.name for file in embedded.iterdir()} == expected


@pytest.mark.parametrize("name", SCANS)
def test_one_body_one_result_whatever_the_file(name: str, embedded: Path) -> None:
    """Format and stored orientation change neither positions nor embeddings."""
    first, other = Embeddings.load(embedded / "nifti.npz"), Embeddings.load(embedded / f"{name}.npz")
    assert len(first.embedding) > 50
    assert set(other.subject) == {name}
    np.testing.assert_allclose(other.position, first.position, atol=1e-2)
    np.testing.assert_allclose(other.embedding, first.embedding, atol=1e-4)
    assert np.ptp(first.embedding, axis=0).max() > 1e-2


def test_positions_lie_in_the_body(embedded: Path, cohort: Path) -> None:
    """By the phantom's label map, within a voxel and the distance that the writer allows."""
    label = nib.load(cohort / "organs" / "phantom_000.nii.gz")
    index = np.argwhere(np.asarray(label.dataobj) > 0)
    body = nib.affines.apply_affine(label.affine, index)
    position = Embeddings.load(embedded / "nifti.npz").position
    distance, _ = cKDTree(body).query(position)
    assert distance.max() < 8 + 9
    # and they are spread over it
    assert (np.ptp(position, axis=0) > 0.5 * np.ptp(body, axis=0)).all()


def test_csv_holds_the_same(embedded: Path) -> None:
    table = Embeddings.load(embedded / "nifti.npz")
    with open(embedded / "nifti.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["subject"] for row in rows} == {"nifti"}
    assert Path(rows[0]["image"]).name == "nifti.nii.gz"
    np.testing.assert_allclose([[float(row[axis]) for axis in "xyz"] for row in rows], table.position, rtol=1e-5)
    values = [[float(row[f"e{i}"]) for i in range(8)] for row in rows]
    np.testing.assert_allclose(values, table.embedding, rtol=1e-5)


def test_picture_lies_over_the_scan(embedded: Path) -> None:
    """Coloured where there are crops, black elsewhere; its affine gives the crops' positions."""
    picture = nib.load(embedded / "nifti_pca.nii.gz")
    values = np.asarray(picture.dataobj)
    assert values.dtype.names == ("R", "G", "B")
    coloured = np.argwhere(sum(values[c].astype(int) for c in "RGB") > 0)
    world = nib.affines.apply_affine(picture.affine, coloured)
    position = Embeddings.load(embedded / "nifti.npz").position
    assert len(world) == len(position)
    assert cKDTree(world).query(position)[0].max() < 1e-2
    assert len(np.unique(values["R"])) > 20


def test_without_weights_it_says_so(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        monai.bundle.run(
            "run",
            config_file=str(CONFIGS / "embed.yaml"),
            dataset_dir=str(scans),
            output_dir=str(tmp_path),
            checkpoint=str(tmp_path / "model.pt"),
            device=torch.device("cpu"),
        )
    assert f"no weights at {tmp_path / 'model.pt'}" in repr(refused.value.__cause__)


@pytest.mark.parametrize("word", ["false", "False", False])
def test_switches_are_words_on_the_command_line(word: Any) -> None:
    """`--to_edges false` arrives as a string, which Python takes for true."""
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "embed.yaml"))
    parser.update({"to_edges": word, "csv_embeddings": word})
    assert parser.get_parsed_content("inferer").to_edges is False
    assert parser.get_parsed_content("handlers")[0].csv_embeddings is False
