"""A store of embeddings gives back what was put there, or says why not: damage, another file, another network."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anatomy_ssl.data import embedding_store
from anatomy_ssl.data.embedding_store import EmbeddingStore
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.data.source import source_fingerprint
from tests.matching.fields import dense_embedding

MODEL = {"sha256": "a" * 64, "recipe": {"spacing": (2.0, 2.0, 2.0), "window": [-1000, 1000]}, "overlap": 0.5}
ARRAYS = ("fine", "coarse", "norms", "cell_norms")


@pytest.fixture
def item(tmp_path: Path) -> dict[str, Any]:
    """A file that nobody reads as an image."""
    path = tmp_path / "scans" / "p1.nii.gz"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 100)
    return {"image": str(path), "subject": "p1"}


@pytest.fixture
def store(tmp_path: Path, item: dict[str, Any]) -> EmbeddingStore:
    """With the embedding of `item`."""
    store = EmbeddingStore(tmp_path / "store", MODEL)
    store.put(item, dense_embedding())
    return store


def spoil(path: Path, place: int, keep_time: bool = False) -> None:
    """Turn one byte of a file round."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_what_is_put_comes_back(store: EmbeddingStore, item: dict[str, Any]) -> None:
    dense, found = dense_embedding(), store.get(item)
    for name in ("fine", "coarse", "affine"):
        assert np.array_equal(getattr(found, name), getattr(dense, name))
    for name in ("fine_stride", "coarse_stride", "shape", "subject", "source"):
        assert getattr(found, name) == getattr(dense, name)
    assert isinstance(found.fine, np.memmap) and found.fine.dtype == np.float16
    assert store.is_current(item) and store.problem(item) is None
    assert sorted(os.listdir(store.folder)) == [store.folder_of(item).name]


def test_an_absent_one_is_missing(store: EmbeddingStore, item: dict[str, Any], tmp_path: Path) -> None:
    other = {"image": shutil.copy(item["image"], tmp_path / "p1.nii.gz")}
    with pytest.raises(FileNotFoundError, match=r"p1.nii.gz has no embedding in .*: write it with embed.yaml"):
        store.get(other)
    assert store.folder_of(other) != store.folder_of(item)


@pytest.mark.parametrize("name", [*[f"{name}.npy" for name in ARRAYS], "embedding.json"])
@pytest.mark.parametrize("how", ["cut", "absent", "first byte", "middle", "last byte"])
def test_damage_is_seen(store: EmbeddingStore, item: dict[str, Any], name: str, how: str) -> None:
    path = store.folder_of(item) / name
    size = path.stat().st_size
    if how == "cut":
        os.truncate(path, size // 2)
    elif how == "absent":
        path.unlink()
    else:
        spoil(path, {"first byte": 0, "middle": size // 2, "last byte": size - 2}[how])
    assert not store.is_current(item)
    with pytest.raises((ValueError, FileNotFoundError), match=r"(damaged|no embedding).*write it with embed.yaml"):
        store.get(item)
    store.put(item, dense_embedding())
    assert store.is_current(item, verify=True)


def test_damage_that_left_no_trace_is_seen_on_demand(store: EmbeddingStore, item: dict[str, Any]) -> None:
    spoil(store.folder_of(item) / "fine.npy", 5000, keep_time=True)
    assert not store.is_current(item, verify=True)


def test_a_copied_store_is_checked_once(
    store: EmbeddingStore, item: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are of another time."""
    for path in store.folder_of(item).glob("*.npy"):
        os.utime(path, (1, 1))
    read = []
    plain = embedding_store._checksum
    monkeypatch.setattr(embedding_store, "_checksum", lambda path: read.append(path.name) or plain(path))
    assert store.is_current(item) and sorted(read) == sorted(f"{name}.npy" for name in ARRAYS)
    assert store.is_current(item) and len(read) == len(ARRAYS)


@pytest.mark.parametrize("place", [0, 12_345, -1])
def test_a_changed_volume_is_seen(store: EmbeddingStore, item: dict[str, Any], place: int) -> None:
    spoil(Path(item["image"]), place)
    with pytest.raises(ValueError, match=r"p1.nii.gz has changed since its embedding .* was made"):
        store.get(item)


def test_a_replaced_volume_of_the_same_time_is_seen_by_its_end(store: EmbeddingStore, item: dict[str, Any]) -> None:
    """There a gzip file has the checksum of its content."""
    spoil(Path(item["image"]), -5, keep_time=True)
    assert not store.is_current(item)


def test_a_touched_volume_is_the_same(store: EmbeddingStore, item: dict[str, Any]) -> None:
    os.utime(item["image"], (1, 1))
    assert store.is_current(item)
    record = json.loads((store.folder_of(item) / "embedding.json").read_text())
    assert record["of"]["mtime_ns"] == 10**9


def test_a_volume_that_changed_while_it_was_embedded(store: EmbeddingStore, item: dict[str, Any]) -> None:
    before = source_fingerprint(item)
    spoil(Path(item["image"]), 100)
    store.put(item, dense_embedding(), before)
    assert not store.is_current(item)


def test_a_missing_volume_is_a_bad_image(store: EmbeddingStore, item: dict[str, Any]) -> None:
    os.remove(item["image"])
    with pytest.raises(BadImageError, match=r"p1.nii.gz: the file does not exist"):
        store.problem(item)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "b" * 64}, "another embedding.pt"),
        ({"recipe": {"spacing": [3.0]}}, "another recipe"),
        ({"overlap": 0.25}, r"another overlap \(0.5, not 0.25\)"),
    ],
)
def test_another_model_is_seen(store: EmbeddingStore, item: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"was made by {said}: write it with embed.yaml"):
        EmbeddingStore(store.folder, {**MODEL, **change}).get(item)
    assert EmbeddingStore(store.folder).is_current(item)


def test_series_and_headers_with_data_beside_them(tmp_path: Path) -> None:
    """A change in any file of a volume is one of the volume."""
    series = tmp_path / "series"
    series.mkdir()
    for n in range(3):
        (series / f"{n}.dcm").write_bytes(bytes([n]) * 1000)
    (tmp_path / "q.mhd").write_text("ElementDataFile = q.raw")
    (tmp_path / "q.raw").write_bytes(bytes(1000))
    store = EmbeddingStore(tmp_path / "store")
    files = [str(path) for path in sorted(series.iterdir())]
    changed = {str(series): series / "1.dcm", str(tmp_path / "q.mhd"): tmp_path / "q.raw"}
    items: list[dict[str, Any]] = [{"image": path} for path in changed] + [{"image": files}]
    for item in items:
        store.put(item, dense_embedding())
    assert all(store.is_current(item) for item in items)
    for path in changed.values():
        spoil(path, 500)
    assert not any(store.is_current(item) for item in items)


def test_a_failed_write_leaves_what_was_there(
    store: EmbeddingStore, item: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(embedding_store, "_write_record", fail)
        with pytest.raises(OSError, match="disk full"):
            store.put(item, dense_embedding(seed=5))
    assert np.array_equal(store.get(item).fine, dense_embedding().fine)
    assert os.listdir(store.folder) == [store.folder_of(item).name]


def test_leftovers_of_dead_processes_are_removed(store: EmbeddingStore, item: dict[str, Any]) -> None:
    old, new = (store.folder / f".{store.folder_of(item).name}.{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.mkdir()
    os.utime(old, (1, 1))
    store.put(item, dense_embedding())
    assert new.exists() and not old.exists()


def test_a_replaced_embedding_stays_readable_where_it_is_open(store: EmbeddingStore, item: dict[str, Any]) -> None:
    before = store.get(item)
    store.put(item, dense_embedding(seed=5))
    assert np.array_equal(before.fine, dense_embedding().fine)
    assert np.array_equal(store.get(item).fine, dense_embedding(seed=5).fine)


def write_and_read(folder: str, image: str, seed: int, faults: Any) -> None:
    """Puts its own version many times, and takes what it finds: any, but a whole one."""
    store, item = EmbeddingStore(folder, MODEL), {"image": image}
    versions = [dense_embedding((8, 8, 8), seed=s) for s in range(2)]
    for _ in range(15):
        store.put(item, versions[seed])
        try:
            found = store.get(item, verify=True)
        except FileNotFoundError:
            continue
        except Exception as error:
            faults.put(repr(error))
            continue
        if not any(np.array_equal(found.fine, v.fine) and np.array_equal(found.coarse, v.coarse) for v in versions):
            faults.put("a mixture")


def test_processes_write_and_read_at_once(item: dict[str, Any], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    faults = context.Queue()
    folder = str(tmp_path / "store")
    workers = [context.Process(target=write_and_read, args=(folder, item["image"], s, faults)) for s in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert faults.empty(), faults.get()
    assert len(os.listdir(folder)) == 1
    assert EmbeddingStore(folder, MODEL).is_current(item, verify=True)
