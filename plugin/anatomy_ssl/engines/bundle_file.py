"""Where the other configs of a bundle are, for a config that runs another one."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["bundle_config"]


def bundle_config(name: str, bundle_root: str = ".") -> str:
    """The path of a config of the bundle that is being run.

    MONAI does not tell a config where it lies; it puts the bundle's root on `sys.path` when it runs. So a plain name is
    looked for there where `bundle_root` is not given right. A path to a file is taken as it is.

    Args:
        name: of a file in the bundle's `configs`, or a path.
        bundle_root: of the bundle, the key of the same name.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    places = [Path(name), *(Path(root) / "configs" / name for root in (bundle_root, *sys.path))]
    for place in places:
        if place.is_file():
            return str(place)
    raise FileNotFoundError(
        f"There is no config {name} in {places[1].parent}: give --bundle_root, the bundle's folder."
    )
