"""Datalist of autoPET: pre-training on patients without lesions, evaluation on patients with lesions."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from anatomy_ssl.data.datalist import Item, require_files
from anatomy_ssl.data.public.layout import Splits, absolute, find, layout_error
from anatomy_ssl.data.reading import read_image
from anatomy_ssl.data.splits import split_patients
from anatomy_ssl.data.table import read_table

_logger = logging.getLogger(__name__)

_IMAGES = {"CTres": "_0000", "SUV": "_0001", "CT": None}
_EXPECTED = "PETCT_<patient>/<study>/{CTres,SUV,SEG}.nii.gz or imagesTr/fdg_<patient>_<study>_0000.nii.gz with labelsTr"


def autopet(root: str | os.PathLike[str], seed: int = 0, image: str = "CTres") -> Splits:
    """The autoPET set FDG-PET-CT-Lesions (Gatidis et al., Sci Data 2022, doi:10.1038/s41597-022-01718-3) for ISImed.

    `training` are the patients without lesions; those with lesions are halved into `validation` and `test`. All studies
    of a patient stay together: one study with a lesion makes the patient one with lesions.

    Layout, at any depth below root::

        PETCT_0011f3deaf/03-23-2003-NA-PET-CT .../{CT,CTres,PET,SUV,SEG}.nii.gz
        Clinical Metadata FDG PET_CT Lesions.csv or fdg_metadata.csv     also beside root; columns Subject ID, diagnosis

    or the nnU-Net form of autoPET III (its FDG studies only; the PSMA cohort is another tracer)::

        imagesTr/fdg_0011f3deaf_<study>_0000.nii.gz (CTres), ..._0001.nii.gz (SUV)
        labelsTr/fdg_0011f3deaf_<study>.nii.gz

    Without the CSV every segmentation is read (minutes). Items have `image`, `subject` and `lesion`, the segmentation,
    which lies on the grid of CTres and SUV (not of CT).

    Args:
        root: the data set's folder.
        seed: of the split into validation and test.
        image: "CTres" (CT on the PET grid), "SUV" (PET) or "CT" (CT as acquired).

    Raises:
        FileNotFoundError: where no study is found or a study has no segmentation.
        ValueError: on an unknown image, a patient that the CSV lacks, an unreadable segmentation, too few patients.
    """
    if image not in _IMAGES:
        raise ValueError(f"autoPET has no image {image!r}; give one of {', '.join(_IMAGES)}.")
    folder = absolute(root)
    items = _studies(folder, image)
    if not items:
        raise layout_error("autoPET", folder, _EXPECTED)
    require_files(items, ("lesion",), "autoPET")
    table = _metadata(folder)
    affected = _affected_by_diagnosis(items, table) if table else _affected_by_segmentation(items)
    training = [item for item in items if item["subject"] not in affected]
    if not training:
        raise ValueError(f"autoPET: none of the patients in {folder} is without lesions; complete the data set.")
    others = [item for item in items if item["subject"] in affected]
    return {"training": training, **split_patients(others, {"validation": 0.5, "test": 0.5}, seed)}


def _studies(folder: Path, image: str) -> list[Item]:
    items = [
        {"image": str(path), "subject": path.parent.parent.name, "lesion": str(path.with_name("SEG.nii.gz"))}
        for path in find(folder, f"**/PETCT_*/*/{image}.nii.gz")
    ]
    ending = _IMAGES[image]
    for path in find(folder, f"**/imagesTr/fdg_*{ending}.nii.gz") if ending and not items else ():
        case = path.name.removesuffix(f"{ending}.nii.gz")
        lesion = path.parent.with_name("labelsTr") / f"{case}.nii.gz"
        items.append({"image": str(path), "subject": f"PETCT_{case.split('_')[1]}", "lesion": str(lesion)})
    return items


def _metadata(folder: Path) -> Path | None:
    names = ("Clinical Metadata FDG PET_CT Lesions*.csv", "*fdg_metadata*.csv")
    below = find(folder, *names, *(f"**/{name}" for name in names))
    return next(iter(below or find(folder.parent, *names)), None)


def _affected_by_diagnosis(items: Sequence[Item], table: Path) -> set[str]:
    diagnoses: dict[str, set[str]] = {}
    for row in read_table(table, ("Subject ID", "diagnosis")):
        diagnoses.setdefault(row["Subject ID"], set()).add(row["diagnosis"].upper())
    unknown = next((item["subject"] for item in items if item["subject"] not in diagnoses), None)
    if unknown:
        raise ValueError(
            f"{table} has no row for the patient {unknown!r}; complete it, or take it away to read the SEGs."
        )
    return {patient for patient, found in diagnoses.items() if found != {"NEGATIVE"}}


def _affected_by_segmentation(items: Sequence[Item]) -> set[str]:
    _logger.info("autoPET: no metadata CSV found, reading %d segmentations.", len(items))
    affected = set()
    for item in tqdm(items, desc="segmentations", disable=None):
        if read_image(item["lesion"]).any():
            affected.add(item["subject"])
    return affected
