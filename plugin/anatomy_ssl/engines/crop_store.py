"""A store of prepared scans for a training that is yet to run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from anatomy_ssl.data.dataset import first_random, flat_chain
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.data.scan_store import ScanStore
from anatomy_ssl.data.store_building import build_store

__all__ = ["build_crop_store"]

logger = logging.getLogger(__name__)

_DATASETS = ("train#scans", "train#dataset")


def build_crop_store(
    config_files: Sequence[str],
    datalist: str | os.PathLike[str],
    output: str | os.PathLike[str],
    workers: int = 2,
    options: Mapping[str, Any] | None = None,
) -> tuple[ScanStore, int, dict[int, BadImageError]]:
    """Prepare the training and validation scans of a pre-training as it will find them with `crop_store`.

    Args:
        config_files: pretrain.yaml with the overlays that the training will have: they say how scans are prepared.
        datalist: a folder of scans or a datalist JSON, as `dataset_dir` of the training.
        output: folder of the store.
        workers: processes that prepare scans; 0 prepares them in this one.
        options: further keys of the config, as the training will get them.

    Returns:
        the store, the number of scans, and what is wrong with those that cannot be used.

    Raises:
        FileNotFoundError: a config is missing.
        ValueError: the config knows no crop store.
        BadImageError: a scan cannot be used, and `on_bad_image` of the config is "raise".
        OSError: the disk is too small.
    """
    for file in config_files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no config {file}")
    parser = ConfigParser()
    parser.read_config([str(file) for file in config_files])
    keys: Mapping[str, Any] = parser.get()
    if "crop_store" not in keys:
        raise ValueError(f"{', '.join(map(str, config_files))} has no crop_store: give a pretrain.yaml first")
    unknown = [key for key in options or {} if key.split("#")[0] not in keys]
    if unknown:
        raise ValueError(f"the config has no {unknown[0]!r}: its keys are {', '.join(sorted(keys))}")
    parser.update({"dataset_dir": str(datalist), "crop_store": str(output), **(options or {})})
    # the datasets themselves would prepare everything as soon as they are made
    name = next(name for name in _DATASETS if "transform" in parser.get(name, {}))
    chain = flat_chain(_parsed(parser, f"{name}#transform"))
    items = [*_parsed(parser, "train_items"), *_parsed(parser, "val_items")]
    store = ScanStore(output, chain.transforms[: first_random(chain)])
    bad = build_store(store, items, workers, _parsed(parser, "on_bad_image"), verify=True)
    for error in bad.values():
        logger.warning("skipped: %s", error)
    return store, len(items), bad


def _parsed(parser: ConfigParser, name: str) -> Any:
    """A part of the config; errors are those of what it calls, which MONAI wraps in its own."""
    try:
        return parser.get_parsed_content(name)
    except RuntimeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (ValueError, OSError)):
            raise cause from error
        raise
