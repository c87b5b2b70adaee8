"""Alice's first stage as one step: train the embedding if it is not there, embed the volumes that are not embedded."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from anatomy_ssl.data.embedding_store import EmbeddingStore
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.data.source import source_fingerprint
from anatomy_ssl.matching.embedder import VolumeEmbedder

__all__ = ["ensure_embedding", "prepare_embeddings"]

logger = logging.getLogger(__name__)


def prepare_embeddings(
    items: Sequence[Mapping[str, Any]],
    embedding: str | os.PathLike[str],
    store: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    overlap: float = 0.5,
    on_bad_image: str = "raise",
    verify: bool = False,
    progress: bool = True,
    units: str | None = None,
) -> list[Path]:
    """Embed the volumes that have no current embedding in a store; those that are damaged or stale there anew.

    Several processes share the volumes out; all of them return when the last is done.

    Args:
        items: of a datalist.
        embedding: `embedding.pt`.
        store: folder, see `EmbeddingStore`.
        device: where volumes are embedded.
        overlap: see `VolumeEmbedder`.
        on_bad_image: "raise" or "skip", with a log line for each.
        verify: compare the checksums of all files that are there; else only of those that were touched.
        progress: whether to show a progress bar where there is a terminal.
        units: see `VolumeEmbedder`.

    Returns:
        the subfolders of all volumes but the skipped ones of this process.

    Raises:
        FileNotFoundError: there is no embedding.pt.
        ValueError: embedding.pt cannot be used, or `on_bad_image` is no such word.
        BadImageError: a volume cannot be used.
    """
    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f"on_bad_image must be 'raise' or 'skip', not {on_bad_image!r}")
    embedder = VolumeEmbedder(embedding, device, overlap, units)
    kept = EmbeddingStore(store, embedder.model)
    rank, size = _process()
    folders = []
    bar = tqdm(range(0, len(items), size), "embeddings", disable=None if progress and rank == 0 else True)
    for start in bar:
        for place, item in enumerate(items[start : start + size]):
            folders.append(kept.folder_of(item))
            if place == rank and not _embed(item, embedder, kept, verify, on_bad_image):
                folders.pop()
        # after each round: whoever waited for all of another's volumes at once might wait too long
        if size > 1:
            dist.barrier()
    return folders


def _embed(
    item: Mapping[str, Any], embedder: VolumeEmbedder, store: EmbeddingStore, verify: bool, on_bad_image: str
) -> bool:
    """Embed a volume where that is needed; false where it was skipped."""
    try:
        problem = store.problem(item, verify)
        if problem is None:
            return True
        absent = not store.folder_of(item).exists()
        logger.log(logging.DEBUG if absent else logging.WARNING, "it is computed now: %s", problem)
        fingerprint = source_fingerprint(item)
        store.put(item, embedder(item), fingerprint)
    except BadImageError as error:
        if on_bad_image == "raise":
            logger.error("%s", error)  # MONAI's bundle wraps what happens at construction in messages of its own
            raise
        logger.warning("skipped: %s", error)
        return False
    return True


def ensure_embedding(
    config_file: str | Sequence[str],
    embedding: str | os.PathLike[str],
    store: str | os.PathLike[str] | None = None,
    items: Sequence[Mapping[str, Any]] = (),
    device: str | torch.device = "cpu",
    on_bad_image: str = "raise",
    **overrides: Any,
) -> Path:
    """Train the embedding where it is not there, going on with a training that was stopped; then embed volumes.

    The random state of Python, NumPy and torch is left as it was, so that what follows does not depend on whether this
    had anything to do.

    Args:
        config_file: pretrain_embedding.yaml, or a list with overlays after it.
        embedding: where its `embedding.pt` is or is to be.
        store: folder of embeddings; None embeds none.
        items: volumes to embed.
        device: of the training and of the embedding of volumes.
        on_bad_image: "raise" or "skip", in both.
        overrides: keys of the config, such as `dataset_dir`; those that are None stay as the config has them.

    Returns:
        the path of embedding.pt.

    Raises:
        FileNotFoundError: there is no embedding.pt, and several processes run: it is to be trained by itself.
        ValueError: the path's name is not embedding.pt; see also `prepare_embeddings`.
        RuntimeError: the training ended without writing it.
    """
    path = Path(embedding)
    try:
        if path.name != "embedding.pt":
            raise ValueError(f"{path} must be named embedding.pt, as pretrain_embedding.yaml writes it")
        if not path.is_file():
            given = {"device": torch.device(device), "on_bad_image": on_bad_image, **overrides}
            _train(config_file, path, {name: value for name, value in given.items() if value is not None})
    except (ValueError, OSError) as error:
        logger.error("%s", error)  # MONAI's bundle wraps what happens at construction in messages of its own
        raise
    if store is not None:
        prepare_embeddings(items, path, store, device, on_bad_image=on_bad_image, units=overrides.get("units"))
    return path


def _train(config_file: str | Sequence[str], path: Path, overrides: Mapping[str, Any]) -> None:
    """Run stage one in this process."""
    if _process()[1] > 1:
        data = overrides.get("dataset_dir", "DIR")
        raise FileNotFoundError(
            f"no embedding at {path}: train it first, by python -m monai.bundle run training --config_file "
            f"pretrain_embedding.yaml --dataset_dir {data} --output_dir {path.parent}, and then start these processes "
            "again, which embed the volumes; or do that before as well, by python -m monai.bundle run embedding "
            f"--config_file embed.yaml --dataset_dir {data} --checkpoint {path}"
        )
    logger.info("no embedding at %s: training it now", path)
    with _random_state_kept():
        workflow = monai.bundle.ConfigWorkflow(
            config_file, logging_file=False, run_id="training", workflow_type=None,
            output_dir=str(path.parent), resume="auto", **overrides,
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    if not path.is_file():
        raise RuntimeError(f"the training of {config_file} ended, but wrote no {path}")


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Random states and settings of torch as before, whatever a training does to them."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    settings = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = settings


def _process() -> tuple[int, int]:
    """This process's number and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
