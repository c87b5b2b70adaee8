"""Lists of images: read, check and write datalist JSON files.

A datalist has the form of the Medical Segmentation Decathlon: `{"name": ..., "training": [item, ...], "validation":
[...], "test": [...]}`. An item is `{"image": path}` with, as it has them, `subject` (the patient's name), `label` and
`lesion` (paths of maps), further maps under any name, `origin` ([x, y, z] in world mm, RAS+), and `labels` (class name
-> value). Paths are relative to the JSON's folder or absolute; `image` is a list of files for a DICOM series that
shares its folder with others.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from anatomy_ssl.data.atomic import atomic_write
from anatomy_ssl.data.folder import IMAGE_EXTENSIONS, file_stem, scan_folder
from anatomy_ssl.data.splits import split_patients

__all__ = ["absolute_paths", "check_patients", "load_datalist", "require_files", "split_patients", "write_datalist"]

_logger = logging.getLogger(__name__)

_SPLITS = ("training", "validation", "test")
_PATH_KEYS = ("image", "label", "lesion")

Item = dict[str, Any]


def load_datalist(
    path: str | os.PathLike[str],
    split: str = "training",
    *,
    validation_fraction: float = 0.1,
    seed: int = 0,
    keys: Sequence[str] = _PATH_KEYS,
    pattern: str | None = None,
    subject_pattern: str | None = None,
) -> list[Item]:
    """The items of one split, with absolute paths and a `subject` each.

    `path` is a datalist JSON, or a folder. A folder's `datalist.json`, or `dataset.json` in the Decathlon form, is used
    where there is one; else the folder is scanned (`anatomy_ssl.data.folder.scan_folder`) and all is training data.

    Where there is training data and no `validation` split, `validation_fraction` of the training patients are it:
    chosen by `seed`, taken out of `training`, the same in every call. Give 0 to train on all patients.

    Args:
        path: datalist JSON or folder.
        split: name of the split; `all` for the images of every split.
        validation_fraction: share of the training patients held out where the list has no validation split.
        seed: of that choice.
        keys: item keys that hold paths: they are made absolute and must exist. Paths of images under other keys are
            made absolute where the file exists, all else is left as it is.
        pattern: which files to take when scanning a folder, see `scan_folder`.
        subject_pattern: patients' names when scanning a folder, see `scan_folder`.

    Raises:
        FileNotFoundError: where the list, the folder or a file of the split is missing.
        ValueError: where the list is not in the Decathlon form; the split is absent or empty; an item has no image, or
        no
            `origin` where others have one; an
            image is listed twice; a patient is in two splits; two images get one patient's name from their file names.
    """
    source = _find_list(Path(os.path.abspath(path)))
    if source.is_dir():
        splits = {"training": scan_folder(source, pattern, subject_pattern)}
    else:
        splits = _read_splits(source, split, keys)
        splits = check_patients(splits, str(source))
    if split == "all":
        splits["all"] = [item for items in splits.values() for item in items]
    if not splits.get("validation") and splits.get("training") and split in ("training", "validation"):
        splits |= _hold_out(splits["training"], validation_fraction, seed, source)
    if not splits.get(split):
        raise ValueError(
            f"{source} has no {split!r} split or it is empty; it has {', '.join(splits) or 'none'}"
            + ("; give a validation_fraction above 0 to split one off." if split == "validation" else ".")
        )
    require_files(splits[split], keys, f"{source} ({split})")
    check_origins(splits[split], str(source))
    return splits[split]


def _find_list(path: Path) -> Path:
    """The JSON to read, or the folder itself where it is to be scanned."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; give a datalist JSON or a folder of scans.")
    for name in ("datalist.json", "dataset.json") if path.is_dir() else ():
        file = path / name
        if not file.is_file():
            continue
        if name == "datalist.json" or any(isinstance(_read_json(file).get(s), list) for s in _SPLITS):
            return file
        _logger.info("%s lists no images (it is not in the Decathlon form): scanning the folder.", file)
    return path


def _read_json(file: Path) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            document = json.load(stream)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(document, dict):
        raise ValueError(f'{file} is not in the Decathlon form: it must hold {{"training": [...], ...}}, not a list.')
    return document


def _read_splits(file: Path, wanted: str, keys: Sequence[str]) -> dict[str, list[Item]]:
    """The lists of images in a JSON, paths absolute."""
    # monai.data.load_decathlon_datalist turns every string that happens to name a path, a patient's too, into that path
    document = _read_json(file)
    splits = {
        name: [absolute_paths(_as_item(entry, name, i, file), file.parent, keys) for i, entry in enumerate(entries)]
        for name, entries in document.items()
        if isinstance(entries, list) and (name in (*_SPLITS, wanted) or _lists_images(entries))
    }
    if not splits:
        raise ValueError(f"{file} is not in the Decathlon form: none of {', '.join(_SPLITS)} is a list.")
    return splits


def _lists_images(entries: list[Any]) -> bool:
    return bool(entries) and all(isinstance(entry, dict) and "image" in entry for entry in entries)


def _as_item(entry: Any, split: str, index: int, file: Path) -> Item:
    item = {"image": entry} if isinstance(entry, str) else entry
    image = item.get("image") if isinstance(item, dict) else None
    files = image if isinstance(image, list) else [image]
    if not files or not all(isinstance(f, str) and f for f in files):
        raise ValueError(f"{file}: item {index} of {split!r} has no image; give the path of its file under 'image'.")
    return item


def absolute_paths(item: Item, base: Path, keys: Sequence[str]) -> Item:
    """The item with the paths under `keys` made absolute, `base` being where relative ones start.

    Under other keys only names of image files that are there are paths, all else stays as it is.
    """

    def resolve(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(key, v) for v in value]
        if not isinstance(value, str):
            return value
        full = os.path.normpath(os.path.join(base, value))
        is_path = key in keys or key == "image" or (value.lower().endswith(IMAGE_EXTENSIONS) and os.path.exists(full))
        return full if is_path else value

    return {key: value if key == "subject" else resolve(key, value) for key, value in item.items()}


def check_patients(splits: Mapping[str, Sequence[Item]], source: str) -> dict[str, list[Item]]:
    """The items with a subject each, taken from the file name where it is not given.

    Raises:
        ValueError: on an image listed twice, a patient in two splits, and one name taken from two images.
    """
    images: dict[str, str] = {}
    patients: dict[str, tuple[str, str, bool]] = {}
    result: dict[str, list[Item]] = {}
    for split, items in splits.items():
        result[split] = []
        for item in items:
            image = str(item["image"])
            if image in images:
                raise ValueError(f"{source} lists {image} twice (in {images[image]!r} and {split!r}); remove one.")
            images[image] = split
            derived = item.get("subject") in (None, "")
            subject = str(_derived_subject(item) if derived else item["subject"])
            other, other_split, other_derived = patients.setdefault(subject, (image, split, derived))
            if other != image and (derived or other_derived):
                raise ValueError(
                    f"{source}: {other} and {image} both name the patient {subject!r}; "
                    "give `subject` in the datalist or --subject_pattern."
                )
            if other_split != split:
                raise ValueError(
                    f"{source}: patient {subject!r} is in {other_split!r} and {split!r}; keep one of them."
                )
            result[split].append({**item, "subject": subject})
    return result


def _derived_subject(item: Item) -> str:
    image = item["image"]
    return file_stem(os.path.dirname(image[0]) if isinstance(image, list) else image)


def _hold_out(items: Sequence[Item], fraction: float, seed: int, source: Path) -> dict[str, list[Item]]:
    if fraction == 0:
        return {"training": list(items)}
    try:
        splits = split_patients(items, {"training": 1.0 - fraction, "validation": float(fraction)}, seed)
    except ValueError as error:
        raise ValueError(f"{source}: {error} Give validation_fraction 0 to train on all patients.") from error
    _logger.info(
        "%s has no validation split: %d of %d images held out, by patients.",
        *(source, len(splits["validation"]), len(items)),
    )
    return splits


def check_origins(items: Sequence[Item], source: str) -> None:
    """Refuse reference points that only some images have: positions of the others would be in another frame."""
    without = [item for item in items if item.get("origin") is None]
    if 0 < len(without) < len(items):
        raise ValueError(
            f"{source}: {without[0]['image']} has no `origin`, as {len(items) - len(without)} others have; give it to "
            "every image or to none."
        )


def require_files(items: Iterable[Item], keys: Sequence[str], source: str) -> None:
    """Raise FileNotFoundError that counts the files under `keys` that are missing and names the first."""
    files = [
        str(file)
        for item in items
        for key in dict.fromkeys(("image", *keys))
        for file in ensure_tuple(item.get(key))
        if isinstance(file, (str, os.PathLike))
    ]
    missing = [file for file in files if not os.path.exists(file)]
    if missing:
        raise FileNotFoundError(
            f"{source}: {len(missing)} of {len(files)} files are missing, the first is {missing[0]}; "
            "correct the paths or leave these items out."
        )


def write_datalist(path: str | os.PathLike[str], splits: Mapping[str, Sequence[Item]], **header: Any) -> Path:
    """Write a datalist JSON: absolute paths become relative to its folder, one item a line; whole or not at all.

    Args:
        path: the JSON to write; its folder is made.
        splits: split name -> items. Relative paths in them must already be relative to the JSON's folder.
        header: further top-level entries (`name`, `description`, `licence`, `label_names`, ...).

    Returns:
        The path written.

    Raises:
        ValueError: as `load_datalist` on images and patients listed twice.
    """
    target = Path(os.path.abspath(path))
    check_patients(splits, str(target))
    blocks = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in header.items()]
    for split, items in splits.items():
        lines = ",\n".join("  " + json.dumps(_relative(dict(item), target.parent)) for item in items)
        blocks.append(f"{json.dumps(split)}: [\n{lines}\n]")
    with atomic_write(target) as file:
        file.write(("{\n" + ",\n".join(blocks) + "\n}\n").encode())
    return target


def _relative(value: Any, base: Path) -> Any:
    """The value with every absolute path in it relative to base (kept where it lies on another drive)."""
    if isinstance(value, dict):
        return {key: v if key == "subject" else _relative(v, base) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_relative(v, base) for v in value]
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        try:
            return Path(os.path.relpath(text, base)).as_posix() if os.path.isabs(text) else text
        except ValueError:
            return text
    return value
