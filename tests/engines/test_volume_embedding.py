"""What is to be embedded is embedded, once, whoever does it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import socket
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.distributed as dist

from anatomy_ssl.data.embedding_store import EmbeddingStore
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.engines import ensure_embedding, prepare_embeddings, volume_embedding
from anatomy_ssl.matching import embedder
from tests.matching.networks import write_embedding
from tests.volumes import smooth_volume

TRAINING = """
imports: [$import tests.engines.test_volume_embedding as helpers]
output_dir: .
resume: false
seed: 0
training: ["$helpers.train(@output_dir, @resume, @seed)"]
"""


def train(output_dir: str, resume: Any, seed: int) -> None:
    """Stands in for stage one: draws from all random states, writes what it was told."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
    assert resume == "auto"
    if seed != 13:
        write_embedding(Path(output_dir) / "embedding.pt", seed)


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, Any]]:
    for n in range(3):
        volume = nib.Nifti1Image(smooth_volume((14, 12, 10), n), np.diag([4.0, 4.0, 5.0, 1.0]))
        nib.save(volume, tmp_path / f"p{n}.nii.gz")
    return [{"image": str(tmp_path / f"p{n}.nii.gz"), "subject": f"p{n}"} for n in range(3)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the volumes that are embedded."""
    names: list[str] = []
    plain = embedder.VolumeEmbedder.__call__

    def spy(self: embedder.VolumeEmbedder, item: dict[str, Any]) -> Any:
        names.append(item["subject"])
        return plain(self, item)

    monkeypatch.setattr(embedder.VolumeEmbedder, "__call__", spy)
    return names


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of this module's log."""
    return [record.message for record in caplog.records if record.name == "anatomy_ssl.engines.volume_embedding"]


def test_only_what_is_missing_damaged_or_stale_is_embedded(
    items: list[dict[str, Any]], seen: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, store = write_embedding(tmp_path / "embedding.pt"), tmp_path / "store"
    folders = prepare_embeddings(items[:2], weights, store)
    assert seen == ["p0", "p1"] and sorted(folders) == sorted(store.iterdir())
    with caplog.at_level(logging.WARNING, "anatomy_ssl.engines.volume_embedding"):
        prepare_embeddings(items, weights, store)
        assert seen[2:] == ["p2"] and not said(caplog)
        (folders[0] / "coarse.npy").write_bytes(b"")
        nib.save(nib.Nifti1Image(smooth_volume((14, 12, 10), 9), np.eye(4) * 4), items[1]["image"])
        prepare_embeddings(items, weights, store)
        assert seen[3:] == ["p0", "p1"]
        first, second = said(caplog)
        assert "damaged" in first and "has changed" in second
    prepare_embeddings(items, weights, store, overlap=0.25)
    write_embedding(tmp_path / "embedding.pt", seed=1)
    prepare_embeddings(items, weights, store)
    assert seen[5:] == ["p0", "p1", "p2"] * 2


def test_silent_damage_is_found_on_demand(items: list[dict[str, Any]], seen: list[str], tmp_path: Path) -> None:
    weights, store = write_embedding(tmp_path / "embedding.pt"), tmp_path / "store"
    path = prepare_embeddings(items[:1], weights, store)[0] / "fine.npy"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-7] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    prepare_embeddings(items[:1], weights, store)
    assert len(seen) == 1
    prepare_embeddings(items[:1], weights, store, verify=True)
    assert len(seen) == 2


def test_bad_volumes_stop_or_are_left_out(
    items: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, store = write_embedding(tmp_path / "embedding.pt"), tmp_path / "store"
    Path(items[1]["image"]).write_bytes(b"no image")
    with pytest.raises(BadImageError, match=r"p1.nii.gz: cannot be read"):
        prepare_embeddings(items, weights, store)
    folders = prepare_embeddings(items, weights, store, on_bad_image="skip")
    assert [folder.name[:2] for folder in folders] == ["p0", "p2"] and "skipped: " in caplog.text
    with pytest.raises(ValueError, match="on_bad_image must be"):
        prepare_embeddings(items, weights, store, on_bad_image="ignore")


def random_numbers() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(1))]  # noqa: NPY002


def test_stage_one_runs_if_needed_and_leaves_no_trace_in_what_follows(
    items: list[dict[str, Any]], seen: list[str], tmp_path: Path
) -> None:
    """The same random numbers come after it, whether it trained or not."""
    config, path = tmp_path / "training.yaml", tmp_path / "out" / "embedding.pt"
    config.write_text(TRAINING)
    numbers = []
    for times in (1, 2):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
        assert ensure_embedding(str(config), path, tmp_path / "store", items, seed=3, dataset_dir=None) == path
        numbers.append(random_numbers())
        assert len(seen) == 3, f"run {times}"
    assert numbers[0] == numbers[1]


def test_stage_one_trains_where_and_on_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device, and to leave bad images out, as what follows it does."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(volume_embedding, "_train", lambda config, path, overrides: told.update(overrides))
    ensure_embedding("any.yaml", tmp_path / "embedding.pt", device="cuda:1", on_bad_image="skip", units=None)
    assert told == {"device": torch.device("cuda:1"), "on_bad_image": "skip"}


def test_stage_one_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "training.yaml").write_text(TRAINING)
    with pytest.raises(RuntimeError, match=r"wrote no .*embedding\.pt"):
        ensure_embedding(str(tmp_path / "training.yaml"), tmp_path / "embedding.pt", seed=13)
    with pytest.raises(ValueError, match=r"must be named embedding\.pt"):
        ensure_embedding(str(tmp_path / "training.yaml"), tmp_path / "encoder.pt")


def share(rank: int, port: int, folder: str, items: list[dict[str, Any]], results: Any) -> None:
    """One of two processes: tries to train, then embeds its share."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    names = []
    plain = embedder.VolumeEmbedder.__call__
    embedder.VolumeEmbedder.__call__ = lambda self, item: names.append(item["subject"]) or plain(self, item)  # type: ignore
    try:
        ensure_embedding("none.yaml", Path(folder) / "absent" / "embedding.pt", dataset_dir="scans")
    except FileNotFoundError as error:
        refused = str(error)
    prepare_embeddings(items, Path(folder) / "embedding.pt", Path(folder) / "store")
    whole = all(EmbeddingStore(Path(folder) / "store").is_current(item) for item in items)
    results.put((rank, names, whole, refused))
    dist.destroy_process_group()


def test_two_processes_share_the_volumes(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """And neither of them trains: it is told how to."""
    write_embedding(tmp_path / "embedding.pt")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")  # a forked child inherits locks of threads that it does not have
    results = context.Queue()
    workers = [context.Process(target=share, args=(r, port, str(tmp_path), items, results)) for r in (0, 1)]
    for worker in workers:
        worker.start()
    found = sorted(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert [names for _, names, _, _ in found] == [["p0", "p2"], ["p1"]]
    for _, _, whole, refused in found:
        assert whole and "pretrain_embedding.yaml --dataset_dir scans" in refused and "embed.yaml" in refused
