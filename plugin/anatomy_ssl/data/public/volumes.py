"""Datalists of the public volume data sets BraTS, FLARE22 and BTCV."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from anatomy_ssl.data.datalist import Item
from anatomy_ssl.data.public.layout import Splits, absolute, find, labelled_cases, layout_error
from anatomy_ssl.data.splits import split_patients

_BRATS_MODALITIES = ("t1", "t1ce", "t2", "flair")


def brats(
    root: str | os.PathLike[str], seed: int = 0, modality: str = "t1", fractions: Mapping[str, float] | None = None
) -> Splits:
    """BraTS 2021 (Baid et al., arXiv:2107.02314), one modality; 60 / 20 / 20 by patients, as in ISImed.

    Layout, at any depth below root::

        BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz

    Items have `image` and, for patients with a segmentation, `label` (1 necrosis, 2 oedema, 4 enhancing) and the same
    map as `lesion`.

    Args:
        root: the data set's folder.
        seed: of the split.
        modality: "t1", "t1ce", "t2" or "flair".
        fractions: sizes of the splits, as for `split_patients`.

    Raises:
        FileNotFoundError: where no such files are found.
        ValueError: on an unknown modality.
    """
    if modality not in _BRATS_MODALITIES:
        raise ValueError(f"BraTS has no modality {modality!r}; give one of {', '.join(_BRATS_MODALITIES)}.")
    folder = absolute(root)
    items = []
    for image in find(folder, f"**/*_{modality}.nii.gz", f"**/*_{modality}.nii"):
        patient, _, extension = image.name.rpartition(f"_{modality}")
        label = image.with_name(f"{patient}_seg{extension}")
        item: Item = {"image": str(image), "subject": patient}
        items.append({**item, "label": str(label), "lesion": str(label)} if label.is_file() else item)
    if not items:
        raise layout_error("BraTS", folder, f"BraTS2021_00000/BraTS2021_00000_{modality}.nii.gz")
    return split_patients(items, fractions or {"training": 0.6, "validation": 0.2, "test": 0.2}, seed)


def flare22(
    root: str | os.PathLike[str],
    seed: int = 0,
    labelled: bool = False,
    fractions: Mapping[str, float] | None = None,
) -> Splits:
    """FLARE22 abdominal CT (Ma et al., Lancet Digital Health 2024): 2,000 unlabelled, 50 labelled, 50 validation cases.

    Layout below root (the folder `Training` and those between may be absent)::

        Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz    any number of such folders
        Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz, labels/FLARE22_Tr_0001.nii.gz
        Validation/FLARETs_0001_0000.nii.gz, or Tuning/images and Tuning/labels

    or, for the labelled cases, nnU-Net's `imagesTr` and `labelsTr`.

    Args:
        root: the data set's folder.
        seed: of the split of the labelled cases.
        labelled: False, for pre-training: `training` are the unlabelled cases, `validation` the labelled ones. True,
            for segmentation: `training` and `validation` are the labelled cases split by `fractions`. In both, `test`
            are the challenge's validation cases where they are there, with `label` where that is.
        fractions: of the labelled cases; default 0.8 training, 0.2 validation.

    Raises:
        FileNotFoundError: where the cases asked for are not found.
    """
    folder = absolute(root)
    tuning = find(folder, "**/Tuning/images", "**/Validation/images", "**/Tuning", "**/Validation*")[:1]
    test = [item for place in tuning for item in _flare_cases(place)]
    images = find(folder, "**/FLARE*_LabeledCase*/images", "**/imagesTr")
    cases = _flare_cases(images[0]) if images else []
    if labelled:
        if not cases or "label" not in cases[0]:
            raise layout_error("FLARE22", folder, "Training/FLARE22_LabeledCase50/images and labels")
        splits = split_patients(cases, fractions or {"training": 0.8, "validation": 0.2}, seed)
    else:
        unlabelled = [item for place in find(folder, "**/FLARE*_Unlabel*") for item in _flare_cases(place)]
        if not unlabelled:
            raise layout_error("FLARE22", folder, "Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz")
        splits = {"training": unlabelled, **({"validation": cases} if cases else {})}
    return {**splits, **({"test": test} if test else {})}


def _flare_cases(images: Path) -> list[Item]:
    labels = images.with_name({"images": "labels", "imagesTr": "labelsTr"}.get(images.name, "labels"))
    paired = images.name in ("images", "imagesTr") and labels.is_dir()
    return labelled_cases(images, labels if paired else None, image_suffix="_0000")


def btcv(root: str | os.PathLike[str], seed: int = 0, fractions: Mapping[str, float] | None = None) -> Splits:
    """BTCV abdominal CT (Landman et al., MICCAI 2015 challenge, Synapse syn3193805): 30 labelled, 20 test cases.

    Layout at any depth below root::

        RawData/Training/img/img0001.nii.gz
        RawData/Training/label/label0001.nii.gz
        RawData/Testing/img/img0061.nii.gz        optional: the split `test`, without labels

    or the same files in `imagesTr`, `labelsTr` and `imagesTs`.

    Args:
        root: the data set's folder.
        seed: of the split of the training cases.
        fractions: of the training cases; default 0.8 training (24 cases), 0.2 validation (6 cases).

    Raises:
        FileNotFoundError: where images or label maps are not found.
    """
    folder = absolute(root)
    images = find(folder, "**/Training/img", "**/imagesTr", "img")
    labels = [p.with_name("labelsTr" if p.name == "imagesTr" else "label") for p in images]
    if not images or not labels[0].is_dir():
        raise layout_error("BTCV", folder, "RawData/Training/img/img0001.nii.gz and label/label0001.nii.gz")
    cases = labelled_cases(images[0], labels[0], ("img", "label"))
    if not cases:
        raise layout_error("BTCV", images[0], "img0001.nii.gz, ...")
    splits = split_patients(cases, fractions or {"training": 0.8, "validation": 0.2}, seed)
    test = [item for place in find(folder, "**/Testing/img", "**/imagesTs")[:1] for item in labelled_cases(place, None)]
    return {**splits, **({"test": test} if test else {})}
