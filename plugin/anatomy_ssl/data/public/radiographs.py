"""Datalists of the public radiograph data sets; class labels as `labels`: class name -> value."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from anatomy_ssl.data.datalist import Item
from anatomy_ssl.data.folder import file_stem
from anatomy_ssl.data.public.layout import Splits, absolute, find, keep_present, layout_error
from anatomy_ssl.data.splits import split_patients
from anatomy_ssl.data.table import read_table

_logger = logging.getLogger(__name__)

_CHESTXRAY14_LABELS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
_CHEXPERT_LABELS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
_RSNA_LABELS = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_JSRT_ORGANS = ("left lung", "right lung", "heart", "left clavicle", "right clavicle")
_JSRT_NAME = re.compile(r"JPC[LN]N\d{3}")


def chestxray14(
    root: str | os.PathLike[str], seed: int = 0, validation_fraction: float = 0.1, allow_missing: bool = False
) -> Splits:
    """NIH ChestX-ray14 (Wang et al., CVPR 2017): 112,120 frontal radiographs of 30,805 patients, 14 labels.

    Layout below root::

        images_001/images/00000001_000.png ... images_012/images/, or all in images/
        Data_Entry_2017.csv or Data_Entry_2017_v2020.csv
        train_val_list.txt, test_list.txt

    `test` is the official list; `validation` are patients held out of train_val. Items have `labels` (14 of 0 or 1),
    `view` (PA or AP) and `sex`.

    Args:
        root: the data set's folder.
        seed: of the choice of validation patients.
        validation_fraction: share of the train_val patients.
        allow_missing: go on with the images that are there (some of the twelve archives).

    Raises:
        FileNotFoundError: where a list, the table or an image is missing.
        ValueError: where the table has an unknown finding or lacks a listed image.
    """
    folder = absolute(root)
    tables = find(folder, "Data_Entry_2017*.csv")
    lists = [folder / "train_val_list.txt", folder / "test_list.txt"]
    files = {file_stem(p): p for p in find(folder, "images*/**/*.png", "images*/**/*.jpg")}
    if not (tables and files and all(path.is_file() for path in lists)):
        expected = (
            "images_001/images/*.png (or images/*.png), Data_Entry_2017*.csv, train_val_list.txt and test_list.txt"
        )
        raise layout_error("ChestX-ray14", folder, expected)
    rows = {row["Image Index"]: row for row in read_table(tables[0], ("Image Index", "Finding Labels", "Patient ID"))}
    splits = []
    for path in lists:
        names = path.read_text(encoding="utf-8").split()
        unknown = next((name for name in names if name not in rows), None)
        if unknown:
            raise ValueError(f"{tables[0]} has no row for {unknown}, which {path.name} lists; take the complete table.")
        items = [_chestxray14_item(rows[n], files.get(file_stem(n), folder / "images" / n)) for n in names]
        splits.append(keep_present(items, allow_missing, path))
    return {**_train_validation(splits[0], validation_fraction, seed), "test": splits[1]}


def _chestxray14_item(row: Mapping[str, str], image: Path) -> Item:
    findings = set(row["Finding Labels"].split("|")) - {"No Finding"}
    unknown = findings.difference(_CHESTXRAY14_LABELS)
    if unknown:
        raise ValueError(
            f"ChestX-ray14: {row['Image Index']} has the unknown finding {min(unknown)!r}; check the table."
        )
    labels = {name: int(name in findings) for name in _CHESTXRAY14_LABELS}
    # the table of 2020 renamed the column
    sex = row.get("Patient Sex", row.get("Patient Gender", ""))
    subject, view = row["Patient ID"], row.get("View Position", "")
    return {"image": str(image), "subject": subject, "labels": labels, "view": view, "sex": sex}


def _train_validation(items: Sequence[Item], validation_fraction: float, seed: int) -> Splits:
    sizes = {"training": 1.0 - validation_fraction, "validation": float(validation_fraction)}
    return split_patients(items, sizes, seed)


def chexpert(
    root: str | os.PathLike[str],
    seed: int = 0,
    validation_fraction: float = 0.1,
    frontal_only: bool = False,
    allow_missing: bool = False,
) -> Splits:
    """CheXpert (Irvin et al., AAAI 2019): 224,316 radiographs of 65,240 patients, 14 labels.

    Layout, root being this folder or the one above::

        train.csv, valid.csv     with Path: CheXpert-v1.0[-small]/train/patient00001/study1/view1_frontal.jpg
        train/patient00001/study1/view1_frontal.jpg, valid/...

    `test` is valid.csv, labelled by three radiologists, on which published results are reported; `validation` are
    patients held out of train.csv. Items have `labels` (14: 1, 0, and -1 where the report is uncertain; blank, not
    mentioned, is 0), `view` (Frontal or Lateral) and `sex`.

    Args:
        root: the data set's folder.
        seed: of the choice of validation patients.
        validation_fraction: share of the patients in train.csv.
        frontal_only: leave lateral views out.
        allow_missing: go on with the images that are there.

    Raises:
        FileNotFoundError: where a table or an image is missing.
        ValueError: where a table lacks a column or a path names no patient.
    """
    folder = absolute(root)
    tables = find(folder, "train.csv", "*/train.csv")
    if not tables or not tables[0].with_name("valid.csv").is_file():
        raise layout_error("CheXpert", folder, "train.csv, valid.csv, train/ and valid/")
    splits = []
    for table in (tables[0], tables[0].with_name("valid.csv")):
        rows = read_table(table, ("Path", "Sex", "Frontal/Lateral", *_CHEXPERT_LABELS))
        rows = [row for row in rows if not frontal_only or row["Frontal/Lateral"] == "Frontal"]
        splits.append(keep_present([_chexpert_item(row, table) for row in rows], allow_missing, table))
    return {**_train_validation(splits[0], validation_fraction, seed), "test": splits[1]}


def _chexpert_item(row: Mapping[str, str], table: Path) -> Item:
    match = re.search(r"(?:train|valid)/(patient\d+)/.+", row["Path"])
    if match is None:
        raise ValueError(f"{table}: the path {row['Path']!r} is not of the form train/patient00001/study1/view1.jpg.")
    labels = {name: int(float(row[name] or 0)) for name in _CHEXPERT_LABELS}
    image = str(table.parent / match.group(0))
    view, sex = row["Frontal/Lateral"], row["Sex"]
    return {"image": image, "subject": match.group(1), "labels": labels, "view": view, "sex": sex}


def shenzhen(root: str | os.PathLike[str], seed: int = 0, fractions: Mapping[str, float] | None = None) -> Splits:
    """Shenzhen Hospital set (Jaeger et al., Quant Imaging Med Surg 2014): 662 radiographs, 336 with tuberculosis.

    Layout at any depth below root::

        CXR_png/CHNCXR_0001_0.png           the last digit: 1 tuberculosis, 0 normal; one image a patient
        mask/CHNCXR_0001_0_mask.png         optional: lungs of 566 images (Stirenko et al. 2018), as `label`

    Args:
        root: the data set's folder.
        seed: of the split.
        fractions: sizes of the splits; default 0.7 training, 0.1 validation, 0.2 test.

    Raises:
        FileNotFoundError: where no image is found.
    """
    folder = absolute(root)
    masks = {p.name.removesuffix("_mask.png"): str(p) for p in find(folder, "**/CHNCXR_*_mask.png")}
    items = []
    for image in find(folder, "**/CXR_png/CHNCXR_*_[01].png", "**/CHNCXR_*_[01].png"):
        name = file_stem(image)
        item: Item = {"image": str(image), "subject": name[:-2], "labels": {"Tuberculosis": int(name[-1])}}
        items.append({**item, "label": masks[name]} if name in masks else item)
    if not items:
        raise layout_error("ShenZhen", folder, "CXR_png/CHNCXR_0001_0.png")
    return split_patients(items, fractions or {"training": 0.7, "validation": 0.1, "test": 0.2}, seed)


def rsna_pneumonia(
    root: str | os.PathLike[str],
    seed: int = 0,
    fractions: Mapping[str, float] | None = None,
    allow_missing: bool = False,
) -> Splits:
    """RSNA Pneumonia Detection Challenge 2018, stage 2 (Shih et al., Radiology AI 2019): 26,684 radiographs, 3 classes.

    Layout below root::

        stage_2_train_images/0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm
        stage_2_detailed_class_info.csv                       patientId, class
        pneumonia-challenge-dataset-mappings_2018.json        optional, from RSNA's page

    Items have `labels`: Normal, No Lung Opacity / Not Normal, Lung Opacity, of which one is 1. The boxes of
    stage_2_train_labels.csv are not used (its Target is Lung Opacity). The challenge's `patientId` is one per image;
    the images are from ChestX-ray14, where patients have several. With RSNA's mapping the split is by those patients.

    Args:
        root: the data set's folder.
        seed: of the split.
        fractions: sizes of the splits; default 0.8 training, 0.1 validation, 0.1 test.
        allow_missing: go on with the images that are there.

    Raises:
        FileNotFoundError: where the table or an image is missing.
        ValueError: on a class that is none of the three.
    """
    folder = absolute(root)
    table, images = folder / "stage_2_detailed_class_info.csv", folder / "stage_2_train_images"
    if not (table.is_file() and images.is_dir()):
        raise layout_error("RSNA Pneumonia", folder, "stage_2_train_images/*.dcm and stage_2_detailed_class_info.csv")
    mapping = folder / "pneumonia-challenge-dataset-mappings_2018.json"
    patients: dict[str, str] = {}
    if mapping.is_file():
        entries = json.loads(mapping.read_text(encoding="utf-8"))
        patients = {entry["subset_img_id"]: entry["img_id"][:8] for entry in entries}
    classes = {row["patientId"]: row["class"] for row in read_table(table, ("patientId", "class"))}
    items = []
    for name, kind in sorted(classes.items()):
        if kind not in _RSNA_LABELS:
            raise ValueError(f"{table}: {name} has the class {kind!r}; known are {', '.join(_RSNA_LABELS)}.")
        labels = {label: int(label == kind) for label in _RSNA_LABELS}
        items.append({"image": str(images / f"{name}.dcm"), "subject": patients.get(name, name), "labels": labels})
    items = keep_present(items, allow_missing, table)
    return split_patients(items, fractions or {"training": 0.8, "validation": 0.1, "test": 0.1}, seed)


def jsrt(
    root: str | os.PathLike[str], seed: int = 0, test_fold: str = "even", validation_fraction: float = 0.1
) -> Splits:
    """JSRT (Shiraishi et al., AJR 2000) with the SCR masks (van Ginneken et al., Med Image Anal 2006): 247 radiographs.

    Layout, at any depth below root::

        JPCLN001.IMG ... JPCLN154.IMG (with a nodule), JPCNN001.IMG ... JPCNN093.IMG (without), or .png
        fold1/masks/{left lung,right lung,heart,left clavicle,right clavicle}/JPCLN001.gif, fold2/masks/...

    SCR's two folds are the 124 images with odd and the 123 with even numbers: one is `test`, the other, less
    `validation`, `training`. Items have `labels` ({"Nodule": 0 or 1}) and, where the masks are there, `left_lung`,
    `right_lung`, `heart`, `left_clavicle` and `right_clavicle` (gif, 1024 x 1024, the images are 2048 x 2048 at
    0.175 mm). An .IMG is bare big-endian 16-bit pixels that image readers do not know: a .png beside it is preferred.

    Args:
        root: folder with images and masks.
        seed: of the choice of validation patients.
        test_fold: "even" or "odd".
        validation_fraction: share of the other fold.

    Raises:
        FileNotFoundError: where no image is found, or some but not all masks are.
        ValueError: on an unknown fold.
    """
    if test_fold not in ("even", "odd"):
        raise ValueError(f"JSRT has no fold {test_fold!r}; give 'even' or 'odd'.")
    folder = absolute(root)
    images, masks = _jsrt_files(folder)
    if not images:
        raise layout_error("JSRT", folder, "JPCLN001.png or .IMG, ... and masks in fold1/masks/left lung/JPCLN001.gif")
    if not masks:
        _logger.info("JSRT: no SCR masks in %s, the items have none.", folder)
    folds: Splits = {"even": [], "odd": []}
    for name in sorted(images):
        item: Item = {"image": str(images[name]), "subject": name, "labels": {"Nodule": int(name.startswith("JPCLN"))}}
        for organ in _JSRT_ORGANS if masks else ():
            if (organ, name) not in masks:
                raise FileNotFoundError(f"JSRT: {name} has no mask of the {organ} in {folder}; complete the SCR masks.")
            item[organ.replace(" ", "_")] = str(masks[organ, name])
        folds["odd" if int(name[5:]) % 2 else "even"].append(item)
    rest = folds["odd" if test_fold == "even" else "even"]
    return {**_train_validation(rest, validation_fraction, seed), "test": folds[test_fold]}


def _jsrt_files(folder: Path) -> tuple[dict[str, Path], dict[tuple[str, str], Path]]:
    """Images by name, masks by organ and name; a mask is what lies in a folder called after an organ."""
    images: dict[str, Path] = {}
    masks: dict[tuple[str, str], Path] = {}
    for path in find(folder, "**/[Jj][Pp][Cc]*"):
        name = file_stem(path).upper()
        organ = path.parent.name.lower().replace("_", " ")
        if not _JSRT_NAME.fullmatch(name):
            continue
        if organ in _JSRT_ORGANS:
            masks[organ, name] = path
        elif path.suffix.lower() in (".png", ".jpg") or (path.suffix.lower() == ".img" and name not in images):
            images[name] = path
    return images, masks
