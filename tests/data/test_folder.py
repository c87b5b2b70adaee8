"""Scanning folders: what is found, what is skipped, and whose it is."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from anatomy_ssl.data.folder import file_stem, scan_folder


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def write_series(
    folder: Path,
    uid: str,
    slices: int,
    patient: str = "",
    extension: str = ".dcm",
    kind: str = "AXIAL",
    modality: str = "CT",
) -> None:
    """A DICOM series; slices are named so that their names' order is the reverse of their positions'."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(slices):
        image = sitk.GetImageFromArray(np.full((1, 4, 5), z, np.int16))
        image.SetSpacing((1.0, 1.0, 2.5))
        tags = {
            "0008|0008": f"ORIGINAL\\PRIMARY\\{kind}",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{z}",
            "0008|0060": modality,
            "0010|0020": patient,
            "0020|000d": f"{uid}.99",
            "0020|000e": uid,
            "0020|0032": f"0\\0\\{2.5 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(z),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        path = folder / f"{uid}_{slices - z:03d}.dcm"
        writer.SetFileName(str(path))
        writer.Execute(image)
        path.rename(path.with_suffix(extension))


def subjects(root: Path, **kwargs: str) -> dict[str, str]:
    """Path below root -> patient."""
    return {str(Path(i["image"]).relative_to(root).as_posix()): i["subject"] for i in scan_folder(root, **kwargs)}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/p1.nii.gz", "p1"),
        ("p.1.NII", "p.1"),
        ("1.2.840.113", "1.2.840.113"),
        ("x.seg.nrrd", "x.seg"),
        ("JPCLN001.IMG", "JPCLN001"),
        ("series/", "series"),
    ],
)
def test_stem_drops_image_extensions_only(name, stem):
    assert file_stem(name) == stem


def test_every_format_nested_and_in_order(tmp_path):
    touch(tmp_path, "b/p2.nii", "a/p1.nii.gz", "p3.nrrd", "c/d/p4.nhdr", "p5.mha", "p6.mhd", "p6.raw", "notes.txt")
    touch(tmp_path, "._p7.nii.gz", ".hidden/p8.nii.gz", "__MACOSX/p9.nii.gz", "overview.png")
    write_series(tmp_path / "scans" / "ct", "1.2.3", 3, "P10")
    found = subjects(tmp_path)
    paths = ["a/p1.nii.gz", "b/p2.nii", "c/d/p4.nhdr", "p3.nrrd", "p5.mha", "p6.mhd", "scans/ct"]
    assert found == dict(zip(paths, ["p1", "p2", "p4", "p3", "p5", "p6", "P10"]))
    assert list(found) == sorted(found)
    assert scan_folder(tmp_path) == scan_folder(tmp_path)


@pytest.mark.parametrize("extension", [".dcm", "", ".IMA"])
def test_one_series_is_listed_as_its_folder(tmp_path, extension):
    write_series(tmp_path / "s", "1.2.3", 3, "P1", extension)
    assert scan_folder(tmp_path) == [{"image": str(tmp_path / "s"), "subject": "P1"}]


def test_radiographs_of_one_series_are_images_of_their_own(tmp_path):
    """Frontal and lateral view, or a single one, are no volume."""
    write_series(tmp_path / "a", "1.2.3", 2, "P1", modality="DX")
    write_series(tmp_path / "b", "1.2.4", 1, "P2", modality="CR")
    write_series(tmp_path / "c", "1.2.5", 1, modality="CR")
    expected = {
        "a/1.2.3_001.dcm": "P1",
        "a/1.2.3_002.dcm": "P1",
        "b/1.2.4_001.dcm": "P2",
        "c/1.2.5_001.dcm": "1.2.5_001",
    }
    assert subjects(tmp_path) == expected


def test_one_patient_id_for_all_is_pointed_out(tmp_path, caplog):
    """Anonymised radiographs would all be one patient without a word."""
    caplog.set_level(logging.WARNING)
    for number in range(3):
        write_series(tmp_path, f"1.2.{number}", 1, "ANON", modality="DX")
    assert set(subjects(tmp_path).values()) == {"ANON"}
    assert "all DICOM images bear the PatientID 'ANON'" in caplog.text
    caplog.clear()
    write_series(tmp_path, "1.2.3", 1, "P2", modality="DX")
    assert set(subjects(tmp_path).values()) == {"ANON", "P2"}
    assert not caplog.text


def test_several_series_are_listed_as_files_in_spatial_order(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_series(tmp_path, "1.2.3", 3, "P1")
    write_series(tmp_path, "1.2.4", 4, "P1")
    write_series(tmp_path, "1.2.5", 3, "P1", kind="LOCALIZER")
    write_series(tmp_path, "1.2.6", 1, "P1")
    items = scan_folder(tmp_path)
    assert [i["subject"] for i in items] == ["P1", "P1"]
    assert [[Path(f).name for f in i["image"]] for i in items] == [
        [f"1.2.3_{n:03d}.dcm" for n in (3, 2, 1)],
        [f"1.2.4_{n:03d}.dcm" for n in (4, 3, 2, 1)],
    ]
    assert "localizer: 1, single slice: 1" in caplog.text


def test_series_beside_a_skipped_one_is_not_its_folder(tmp_path):
    """The folder would be read as two series."""
    write_series(tmp_path, "1.2.3", 3)
    write_series(tmp_path, "1.2.4", 1)
    (item,) = scan_folder(tmp_path)
    assert len(item["image"]) == 3
    assert item["subject"] == tmp_path.name


def test_a_folder_of_single_slices_holds_no_scan(tmp_path):
    write_series(tmp_path, "1.2.3", 1)
    write_series(tmp_path, "1.2.4", 1)
    with pytest.raises(FileNotFoundError, match="No images in"):
        scan_folder(tmp_path)


def test_multi_frame_file_is_a_scan(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8))
    image.SetMetaData("0010|0020", "P1")
    sitk.WriteImage(image, str(tmp_path / "a.dcm"))
    assert scan_folder(tmp_path) == [{"image": str(tmp_path), "subject": "P1"}]
    write_series(tmp_path, "1.2.3", 2, "P1")
    assert [len(i["image"]) for i in scan_folder(tmp_path)] == [2, 1]


def test_damaged_dicom_is_skipped_with_a_line(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    touch(tmp_path, "p1.nii.gz", "bad/1.dcm", "bad/2.dcm")
    assert subjects(tmp_path) == {"p1.nii.gz": "p1"}
    assert f"{tmp_path / 'bad'}: skipped DICOM series (no readable header: 2)" in caplog.text


def test_one_patient_id_for_all_folders_is_pointed_out(tmp_path, caplog):
    write_series(tmp_path / "a", "1.2.3", 2, "ANON")
    write_series(tmp_path / "b", "1.2.4", 2, "ANON")
    assert {i["subject"] for i in scan_folder(tmp_path)} == {"ANON"}
    assert "'ANON'" in caplog.text
    assert {i["subject"] for i in scan_folder(tmp_path, subject_pattern=".*")} == {"a", "b"}


@pytest.mark.parametrize(
    "name",
    [
        *("p1_seg.nii.gz", "SEG.nii.gz", "p1-label.nrrd", "p1.seg.nrrd", "label0001.nii.gz", "p1_mask_left.mha"),
        *("p1_leftMask.nii", "labelsTr/p1.nii.gz", "masks/a/p1.nii.gz", "pt_1_oar.nii.gz", "p1_lesion.nii.gz"),
    ],
)
def test_segmentations_are_skipped_and_counted(tmp_path, caplog, name):
    caplog.set_level(logging.INFO)
    touch(tmp_path, "p0.nii.gz", name)
    assert subjects(tmp_path) == {"p0.nii.gz": "p0"}
    assert f"skipped 1 files whose names say segmentation, the first is {name}" in caplog.text


@pytest.mark.parametrize("name", ["MS_lesion_001", "p1_segment5_ct", "maskell_john", "SegTHOR01", "p1_labelled"])
def test_names_that_only_resemble_segmentations_are_kept(tmp_path, name):
    touch(tmp_path, f"{name}.nii.gz")
    assert subjects(tmp_path) == {f"{name}.nii.gz": name}


def test_only_segmentations_is_an_error_that_says_so(tmp_path):
    touch(tmp_path, "a_seg.nii.gz", "b_seg.nii.gz")
    with pytest.raises(FileNotFoundError, match="2 files look like segmentations"):
        scan_folder(tmp_path)


def test_radiographs_alone_or_asked_for(tmp_path):
    touch(tmp_path, "a/p1.png", "a/p2.JPG", "a/p3.jpeg")
    assert list(subjects(tmp_path).values()) == ["p1", "p2", "p3"]
    touch(tmp_path, "ct/p1.nii.gz")
    assert subjects(tmp_path) == {"ct/p1.nii.gz": "p1"}
    assert subjects(tmp_path, pattern="*.png") == {"a/p1.png": "p1"}


def test_pattern_takes_what_it_matches_segmentations_too(tmp_path):
    touch(tmp_path, "x/p1_ct.nii.gz", "x/p1_seg.nii.gz", "y/p2_ct.nii.gz")
    write_series(tmp_path / "z", "1.2.3", 2, "P3")
    assert list(subjects(tmp_path, pattern="*_ct.nii.gz")) == ["x/p1_ct.nii.gz", "y/p2_ct.nii.gz"]
    assert list(subjects(tmp_path, pattern="x/*")) == ["x/p1_ct.nii.gz", "x/p1_seg.nii.gz"]
    assert list(subjects(tmp_path, pattern="*.dcm")) == ["z"]
    with pytest.raises(FileNotFoundError, match=r"that match '\*_pet"):
        scan_folder(tmp_path, pattern="*_pet.nii.gz")


def test_subject_pattern_names_the_patient(tmp_path):
    touch(tmp_path, "siteA/p1_ct.nii.gz", "siteA/p1_pet.nii.gz", "siteB/p1_ct.nii.gz")
    assert set(subjects(tmp_path, subject_pattern=r"^(site./p\d+)_").values()) == {"siteA/p1", "siteB/p1"}
    assert set(subjects(tmp_path, subject_pattern=r"p\d+").values()) == {"p1"}
    with pytest.raises(ValueError, match=r"finds no patient in siteB/p1_ct\.nii\.gz"):
        scan_folder(tmp_path, subject_pattern="siteA/(p1)")
    with pytest.raises(ValueError, match="not a regular expression"):
        scan_folder(tmp_path, subject_pattern="(p1")


def test_one_name_in_two_folders_is_an_error_that_names_both(tmp_path):
    touch(tmp_path, "siteA/p1.nii.gz", "siteB/p1.nii.gz")
    with pytest.raises(ValueError, match=r"siteA/p1\.nii\.gz and siteB/p1\.nii\.gz .*'p1'.*--subject_pattern"):
        scan_folder(tmp_path)


@pytest.mark.parametrize("names", [("ct", "pet"), ("t1", "T2w"), ("image", "CTres")])
def test_same_names_in_a_folder_per_patient_give_the_folder(tmp_path, names):
    for patient in ("p1", "p2", "p3"):
        touch(tmp_path, *(f"images/{patient}/study/{name}.nii.gz" for name in names))
    touch(tmp_path, "images/p4/study/other.nii.gz")
    assert set(subjects(tmp_path).values()) == {"p1", "p2", "p3", "p4"}


def test_patients_beside_folders_of_patients_keep_their_names(tmp_path):
    touch(tmp_path, "p1/ct.nii.gz", "p2/ct.nii.gz", "more/x12.nii.gz", "more/x13.nii.gz", "x14.nii.gz")
    assert set(subjects(tmp_path).values()) == {"p1", "p2", "x12", "x13", "x14"}


@pytest.mark.parametrize(
    "paths",
    [
        ("p1/ct.nii.gz", "p1/old/ct.nii.gz", "p2/ct.nii.gz"),
        ("p1/s1/ct.nii.gz", "p1/s2/ct.nii.gz", "p2/s1/ct.nii.gz"),
        ("siteA/p1/ct.nii.gz", "siteA/p2/ct.nii.gz", "siteB/p1/ct.nii.gz"),
    ],
)
def test_studies_or_sites_are_asked_for_not_guessed(tmp_path, paths):
    touch(tmp_path, *paths)
    with pytest.raises(ValueError, match=r"one patient or two; say which by --subject_pattern") as error:
        scan_folder(tmp_path)
    upper, lower = str(error.value).split("'")[1], str(error.value).split("'")[3]
    tops = {path.split("/")[0] for path in paths}
    assert set(subjects(tmp_path, subject_pattern=upper).values()) == tops
    assert len(set(subjects(tmp_path, subject_pattern=lower).values())) == len(paths)


def test_modalities_named_after_the_patient_folder_are_one_patient(tmp_path):
    """BraTS and BIDS: otherwise one patient would be on both sides of a split."""
    names = [f"BraTS2021_{n:05d}" for n in range(3)]
    touch(tmp_path, *(f"{name}/{name}_{m}.nii.gz" for name in names for m in ("t1", "t1ce", "t2", "flair", "seg")))
    assert sorted(subjects(tmp_path).values()) == sorted(names * 4)
    touch(tmp_path / "bids", "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    assert set(subjects(tmp_path / "bids").values()) == {"sub-01", "sub-02"}


def test_patients_named_after_their_site_stay_apart(tmp_path):
    touch(tmp_path, "site1/site1_01.nii.gz", "site1/site1_02.nii.gz", "site2/site2_01.nii.gz")
    assert list(subjects(tmp_path).values()) == ["site1_01", "site1_02", "site2_01"]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        scan_folder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"read are NIfTI \(\.nii, \.nii\.gz\), NRRD .*DICOM series.*\.png"):
        scan_folder(tmp_path)


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "store/p1.nii.gz")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "scans")
    assert list(subjects(tmp_path / "scans")) == ["a/p1.nii.gz"]
