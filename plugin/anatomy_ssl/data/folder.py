"""Find the scans in a folder and the patient that each belongs to."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import SimpleITK as sitk  # noqa: N813

__all__ = ["IMAGE_EXTENSIONS", "RADIOGRAPH_EXTENSIONS", "VOLUME_EXTENSIONS", "file_stem", "scan_folder"]

_logger = logging.getLogger(__name__)

VOLUME_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
RADIOGRAPH_EXTENSIONS = (".png", ".jpg", ".jpeg")
IMAGE_EXTENSIONS = (*VOLUME_EXTENSIONS, *RADIOGRAPH_EXTENSIONS, ".dcm", ".gif", ".img")
_SUPPORTED = (
    "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), folders of DICOM series, "
    "and radiographs (.png, .jpg, .jpeg)"
)

_SEGMENTATION_WORD = re.compile(
    r"(?:^|[^a-z])(?:seg(?:mentation)?s?|label(?:s|map)?|masks?|gt|ground[_-]?truth|rois?|oars?|[gcp]tv|annotations?)"
    r"(?![a-z])|(?-i:[a-z](?:Seg|Label|Mask)s?$)|(?:^|[^a-z])lesions?$",
    re.IGNORECASE,
)
_SEGMENTATION_FOLDER = re.compile(
    r"(?:labels?|masks?|seg(?:mentation)?s?|annotations?|ground[_-]?truths?|lesions?|organs?|rois?)(?:T[rs]|Va)?", re.I
)
# A name without digits, or an MR sequence such as t1 or T2w, says what the image is, not whose.
_ROLE = re.compile(r"(?:\D|(?<![^\W_])t[12](?!\d))*", re.IGNORECASE)
_BIDS_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
_RADIOGRAPHS = frozenset({"CR", "DX", "RG", "MG", "PX", "XA", "RF"})  # a single slice is the whole image
_NOT_IMAGES = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "SR", "PR", "KO"})


@dataclass(frozen=True)
class _Found:
    """One image: its file(s), the path below the root that names it, and for DICOM its PatientID."""

    image: str | list[str]
    path: PurePosixPath
    patient: str = ""
    is_series: bool = False


@dataclass(frozen=True)
class _Name:
    """A patient's name and what it was taken from; one name from two origins is a collision."""

    subject: str
    origin: str
    from_stem: bool = False


def file_stem(path: str | os.PathLike[str]) -> str:
    """The file's name without its image extension: `a/p1.nii.gz` -> `p1`; other names stay whole."""
    name = os.path.basename(os.path.normpath(os.fspath(path)))
    extension = next((e for e in IMAGE_EXTENSIONS if name.lower().endswith(e)), "")
    return name[: len(name) - len(extension)]


def scan_folder(
    root: str | os.PathLike[str], pattern: str | None = None, subject_pattern: str | None = None
) -> list[dict[str, Any]]:
    """List the images below a folder as `{"image": absolute path, "subject": patient}`, in order of their paths.

    Found are NIfTI, NRRD and MetaImage files and DICOM series (files ending in .dcm or with the DICM preamble). A
    folder with one DICOM series is listed as the folder, each of several series as the list of its files in spatial
    order, and each DICOM radiograph by itself; localizers, single slices of volumes and objects that are no images
    (SEG, RTSTRUCT, ...) are skipped and logged. PNG and JPEG radiographs are listed where there is nothing else, or
    where `pattern` asks for them. Hidden files and, without `pattern`, files that by their names are segmentations
    (`p1_seg.nii.gz`, `labelsTr/...`) are skipped; the latter are counted in the log.

    The patient's name is, in this order: what `subject_pattern` finds; the DICOM PatientID; a BIDS folder `sub-...`
    on the path; the folder `p1` of `p1/p1_t1.nii.gz` and `p1/p1_t2.nii.gz`; the file's name; where file names
    repeat and say what the image is (`p1/ct.nii.gz`, `p2/ct.nii.gz`), the folder. Several files of one patient side by
    side (`p1_a.nii.gz`, `p1_b.nii.gz`) cannot be told from two patients: give `subject_pattern`.

    Args:
        root: the folder.
        pattern: glob that files, or DICOM folders, must match, compared from the right as by `pathlib`'s `match`:
            `*_ct.nii.gz`, `images/*.png`. Files that match are taken whatever their names look like.
        subject_pattern: regular expression searched in the path below `root` (with `/`); its first group, or all that
            it matches, is the patient's name: `(pt_[0-9]+)_ct`.

    Raises:
        FileNotFoundError: where the folder is not there or holds no image.
        ValueError: where `subject_pattern` does not match a path, or two images get one patient's name by chance.
    """
    folder = Path(os.path.abspath(root))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder that holds the scans.")
    found, skipped = _find_images(folder, pattern)
    if not found:
        hint = f" ({skipped} files look like segmentations; give a pattern to take them)" if skipped else ""
        wanted = f" that match {pattern!r}" if pattern else ""
        raise FileNotFoundError(f"No images{wanted} in {folder}{hint}; read are {_SUPPORTED}.")
    found.sort(key=lambda f: (str(f.path), str(f.image)))
    names = _match_subjects(found, subject_pattern) if subject_pattern else _name_subjects(found, folder)
    _logger.info("%s: %d images of %d patients.", folder, len(found), len(set(names)))
    return [{"image": f.image, "subject": name} for f, name in zip(found, names)]


def _find_images(root: Path, pattern: str | None) -> tuple[list[_Found], int]:
    """The images below root and how many files were taken for segmentations."""
    volumes: list[_Found] = []
    radiographs: list[_Found] = []
    segmentations: list[PurePosixPath] = []
    for folder, names in _walk(root):
        below = PurePosixPath(folder.relative_to(root).as_posix())
        for name in names:
            path, lower = below / name, name.lower()
            if not lower.endswith(VOLUME_EXTENSIONS + RADIOGRAPH_EXTENSIONS):
                continue
            if pattern is not None and not path.match(pattern):
                continue
            if pattern is None and _looks_like_segmentation(path):
                segmentations.append(path)
                continue
            kind = radiographs if lower.endswith(RADIOGRAPH_EXTENSIONS) else volumes
            kind.append(_Found(str(folder / name), path))
        dicom = [name for name in names if _is_dicom(folder / name)]
        if dicom and (pattern is None or below.match(pattern) or any((below / n).match(pattern) for n in dicom)):
            volumes.extend(_dicom_series(folder, dicom, below))
    if segmentations:
        _logger.info(
            "%s: skipped %d files whose names say segmentation, the first is %s; give a pattern to take them.",
            *(root, len(segmentations), segmentations[0]),
        )
    if pattern is None and volumes and radiographs:
        _logger.info("%s: skipped %d PNG or JPEG files beside the volumes.", root, len(radiographs))
        radiographs = []
    return volumes + radiographs, len(segmentations)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders with their visible files, in order; links are followed, each real folder is entered once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        yield Path(folder), sorted(n for n in names if not n.startswith("."))


def _looks_like_segmentation(path: PurePosixPath) -> bool:
    in_folder = any(_SEGMENTATION_FOLDER.fullmatch(part) for part in path.parts[:-1])
    return in_folder or _SEGMENTATION_WORD.search(file_stem(path)) is not None


def _is_dicom(path: Path) -> bool:
    lower = path.name.lower()
    if lower.endswith(".dcm"):
        return True
    if lower.endswith(IMAGE_EXTENSIONS) or lower == "dicomdir" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _dicom_series(folder: Path, names: Sequence[str], below: PurePosixPath) -> list[_Found]:
    """The image series of one folder."""
    ids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(ids) == len(names):  # one file each: asking GDCM for each series would read the whole folder every time
        series: list[list[str]] = [[str(folder / name)] for name in names]
    else:
        series = [list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)) for uid in ids]
    found: list[_Found] = []
    reasons: dict[str, int] = defaultdict(int)
    for files in series:
        reason, patient, modality = _describe_series(files)
        if reason:
            reasons[reason] += 1
        elif modality in _RADIOGRAPHS:
            found.extend(_Found(file, below / Path(file).name, patient) for file in files)
        else:
            image = str(folder) if len(series) == 1 else files
            found.append(_Found(image, below, patient, is_series=True))
    if not series:
        reasons["no readable header"] = len(names)
    if reasons:
        _logger.info(
            "%s: skipped DICOM series (%s).", folder, ", ".join(f"{r}: {n}" for r, n in sorted(reasons.items()))
        )
    return found


def _describe_series(files: Sequence[str]) -> tuple[str, str, str]:
    """Why a DICOM series is to be skipped ("" where it is not), its PatientID, and its modality."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(files[0])
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return "no readable image", "", ""
    tags = {
        tag: reader.GetMetaData(tag).strip().strip("\x00") if reader.HasMetaDataKey(tag) else ""
        for tag in ("0008|0008", "0008|0060", "0010|0020")
    }
    modality, size = tags["0008|0060"], reader.GetSize()
    if modality in _NOT_IMAGES:
        return f"modality {modality}", "", modality
    if "LOCALIZER" in tags["0008|0008"].upper():
        return "localizer", "", modality
    if modality not in _RADIOGRAPHS and len(files) < 2 and (len(size) < 3 or size[2] < 2):
        return "single slice", "", modality
    return "", tags["0010|0020"], modality


def _match_subjects(found: Sequence[_Found], subject_pattern: str) -> list[str]:
    try:
        expression = re.compile(subject_pattern)
    except re.error as error:
        raise ValueError(f"subject_pattern {subject_pattern!r} is not a regular expression: {error}.") from error
    names = []
    for f in found:
        match = expression.search(str(f.path))
        name = match.group(1 if expression.groups else 0) if match else None
        if not name:
            raise ValueError(f"subject_pattern {subject_pattern!r} finds no patient in {f.path}; widen the expression.")
        names.append(name)
    return names


def _name_subjects(found: Sequence[_Found], root: Path) -> list[str]:
    names = [_own_name(f, root) for f in found]
    clash = _collisions(names)
    by_role = [
        n.from_stem and len(f.path.parts) > 1 and _ROLE.fullmatch(n.subject) is not None for f, n in zip(found, names)
    ]
    if clash and all(role for n, role in zip(names, by_role) if n.subject in clash):
        folders = {f.path.parent for f, role in zip(found, by_role) if role}
        inside = [i for i, (f, n) in enumerate(zip(found, names)) if n.from_stem and f.path.parent in folders]
        for i, name in zip(inside, _folder_names([found[i].path for i in inside])):
            names[i] = replace(names[i], subject=name, origin=name)
        clash = _collisions(names)
    if clash:
        subject, origins = next(iter(clash.items()))
        raise ValueError(
            f"{origins[0]} and {origins[1]} in {root} both name the patient {subject!r}; "
            "give `subject` in the datalist or --subject_pattern."
        )
    dicom = [f for f in found if f.is_series or f.patient]  # radiographs are single files
    patients = {f.patient for f in dicom}
    if len(patients) == 1 and len({f.path for f in dicom}) > 1:
        _logger.warning(
            "%s: all DICOM images bear the PatientID %r; if they are several patients, give subject_pattern.",
            *(root, patients.pop()),
        )
    return [n.subject for n in names]


def _own_name(found: _Found, root: Path) -> _Name:
    """The patient as far as one image tells."""
    if found.patient:
        return _Name(found.patient, "PatientID")
    if found.is_series:
        path = str(found.path)
        return _Name(root.name if path == "." else path, path)
    stem = file_stem(found.path)
    for folder in list(found.path.parents)[:-1]:
        rest = stem[len(folder.name) :]
        is_prefix = stem.startswith(folder.name) and not rest[:1].isalnum() and _ROLE.fullmatch(rest)
        if _BIDS_SUBJECT.fullmatch(folder.name) or (is_prefix and re.search(r"\d", folder.name)):
            return _Name(folder.name, str(folder))
    return _Name(stem, str(found.path), from_stem=True)


def _collisions(names: Sequence[_Name]) -> dict[str, list[str]]:
    """Names with more than one origin, and the origins in order."""
    origins: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if name.origin not in origins[name.subject]:
            origins[name.subject].append(name.origin)
    return {subject: where for subject, where in origins.items() if len(where) > 1}


def _folder_names(paths: Sequence[PurePosixPath]) -> list[str]:
    """Name each image after its patient's folder, the first one below the folder that all share."""
    parents = [path.parent for path in paths]
    shared = PurePosixPath(posixpath.commonpath([parent.parent for parent in parents])).parts
    tops = [parent.parts[len(shared)] for parent in parents]
    holders: dict[str, list[PurePosixPath]] = defaultdict(list)
    for top, parent in zip(tops, parents):
        if parent not in holders[top]:
            holders[top].append(parent)
    several = next((folders for folders in holders.values() if len(folders) > 1), None)
    if several:
        start = "".join(f"{re.escape(part)}/" for part in shared)
        raise ValueError(
            f"{several[0]} and {several[1]} may be one patient or two; say which by --subject_pattern "
            f"('^{start}([^/]+)/' where the upper folder is the patient, '^{start}(.+)/' where the lower one is)."
        )
    return tops
