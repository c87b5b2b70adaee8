"""What the data sets' functions share: finding the published layout, and saying what it should have been."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anatomy_ssl.data.datalist import require_files
from anatomy_ssl.data.folder import file_stem

_logger = logging.getLogger(__name__)

Item = dict[str, Any]
Splits = dict[str, list[Item]]


def layout_error(name: str, root: Path, expected: str) -> FileNotFoundError:
    """The error for a folder that is not laid out as published."""
    if not root.is_dir():
        return FileNotFoundError(f"{name}: {root} is not a folder; give the one with {expected}.")
    there = sorted(f"{p.name}/" if p.is_dir() else p.name for p in root.iterdir() if not p.name.startswith("."))
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    return FileNotFoundError(f"{name}: expected {expected} in {root}, found {shown or 'nothing'}.")


def find(root: Path, *patterns: str) -> list[Path]:
    """All visible paths below root that match the first of the glob patterns that matches anything, sorted."""
    for pattern in patterns:
        paths = sorted(p for p in root.glob(pattern) if not p.name.startswith("."))
        if paths:
            return paths
    return []


def absolute(root: str | os.PathLike[str]) -> Path:
    """The data set's folder as an absolute path, links unresolved."""
    return Path(os.path.abspath(root))


def labelled_cases(
    images: Path, labels: Path | None, rename: tuple[str, str] = ("", ""), image_suffix: str = ""
) -> list[Item]:
    """The NIfTI files of a folder as items.

    Args:
        images: folder of images.
        labels: folder of label maps, of which every image must have one; None: items without labels.
        rename: text of the image's name and what stands in its place in the label's name.
        image_suffix: end of the image's name (before .nii.gz) that the patient's and the label's name do without.

    Raises:
        FileNotFoundError: where a label map is missing.
    """
    items = []
    for image in find(images, "*.nii.gz"):
        subject = file_stem(image).removesuffix(image_suffix)
        label = {} if labels is None else {"label": str(labels / f"{subject.replace(*rename)}.nii.gz")}
        items.append({"image": str(image), "subject": subject, **label})
    require_files(items, ("label",), str(images))
    return items


def keep_present(items: Sequence[Item], allow_missing: bool, source: Path) -> list[Item]:
    """The items whose images are there.

    Raises:
        FileNotFoundError: where images are missing and that is not allowed, or none is there.
    """
    present = [item for item in items if os.path.exists(item["image"])]
    absent = len(items) - len(present)
    if absent and not (allow_missing and present):
        first = next(item["image"] for item in items if not os.path.exists(item["image"]))
        raise FileNotFoundError(
            f"{source}: {absent} of {len(items)} listed images are missing, the first is {first}; complete the "
            "data set or give allow_missing=True to go on with the part that is there."
        )
    if absent:
        _logger.warning("%s: %d of %d listed images are missing and left out.", source, absent, len(items))
    return present
