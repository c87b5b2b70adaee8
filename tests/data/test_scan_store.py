"""Crops from the store are those without it, bit by bit; what is stale, damaged or half-written is never used."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, Orientationd, ScaleIntensityRanged, SelectItemsd, Spacingd

from anatomy_ssl.data import ScanDataset
from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.data.sampler import EpochSampler
from anatomy_ssl.data.scan_store import ScanStore, StoredFileError
from anatomy_ssl.data.store_building import build_store, check_store
from anatomy_ssl.transforms import (
    AnatomicalOrigind,
    ForegroundPointsd,
    IntensityLookupd,
    LoadVolumed,
    RandOverlappingPatchesd,
    RandPhysicalCropsd,
    ScaleRangePercentilesd,
)
from tests.volumes import smooth_volume

AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
PERCENTILES = ScaleRangePercentilesd("image", 5, 95, -1, 1)
WINDOW = ScaleIntensityRanged("image", a_min=-125, a_max=225, b_min=0, b_max=1, clip=True)


def preparation(intensity: Callable[[Any], Any] = PERCENTILES, threshold: float | None = None) -> list[Any]:
    return [
        LoadVolumed("image", keep_integers=True),
        Orientationd("image", axcodes="RAS", labels=None),
        ForegroundPointsd("image", threshold=threshold),
        AnatomicalOrigind("label"),
        SelectItemsd(["image", "foreground", "origin", "subject", "source"]),
        IntensityLookupd("image", intensity),
    ]


def crops(**options: Any) -> RandPhysicalCropsd:
    return RandPhysicalCropsd("image", (8, 8, 8), 4, candidates="foreground", **options)


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, Any]]:
    """Three scans, of which one is stored as floats."""
    for n, dtype in enumerate((np.int16, np.uint8, np.float32)):
        values = smooth_volume((22, 17, 19), n)
        values = (values // 8).clip(0, 255) if dtype == np.uint8 else values
        nib.save(nib.Nifti1Image(values.astype(dtype), AFFINE), tmp_path / f"p{n}.nii.gz")
    return [{"image": str(tmp_path / f"p{n}.nii.gz"), "subject": f"p{n}"} for n in range(3)]


def same(first: Any, second: Any) -> None:
    """All entries of two collated batches."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[key].dtype and torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "chain",
    [
        [*preparation(), crops()],
        [*preparation(WINDOW), crops(spacing=(2.5, 2.0, 2.5))],
        [
            Compose([*preparation()[:-1], WINDOW]),
            Spacingd("image", pixdim=(3, 3, 3)),
            RandOverlappingPatchesd("image", (6, 6, 6)),
        ],
    ],
    ids=["voxels", "resampled", "patches"],
)
def test_batches_are_those_without_the_store(
    chain: list[Any], workers: int, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Twice: when the store is built, and when it is found."""
    batches = []
    for store in (None, tmp_path / "store", tmp_path / "store"):
        dataset = ScanDataset(items, chain, seed=3, store=store, num_workers=workers, progress=False)
        sampler = EpochSampler(dataset, seed=1)
        sampler.set_epoch(2)
        batches.append(list(DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers)))
    for plain, built, found in zip(*batches):
        same(plain, built)
        same(plain, found)


def test_nothing_is_prepared_twice(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a second training, and by one that was stopped and goes on; nor by one with other crops."""
    written: list[str] = []
    put = ScanStore.put
    monkeypatch.setattr(ScanStore, "put", lambda self, item: written.append(item["subject"]) or put(self, item))
    ScanDataset(items[:2], [*preparation(), crops()], store=tmp_path / "s", num_workers=0)
    ScanDataset(items, [*preparation(), crops(spacing=2.0)], store=tmp_path / "s", num_workers=0)
    assert written == ["p0", "p1", "p2"]


def test_what_has_changed_is_prepared_anew(
    items: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A source, a damaged file; another entry of the datalist and another preparation have files of their own."""
    store = ScanStore(tmp_path / "s", preparation())
    build_store(store, items, workers=0)
    assert [store.problem(item) for item in items] == [None] * 3
    old = store.get(items[0])["image"].as_tensor()
    nib.save(nib.Nifti1Image(smooth_volume((22, 17, 19), 7), AFFINE), items[0]["image"])
    renamed = {**items[1], "subject": "another"}
    damaged = store.path_of(items[2])
    damaged.write_bytes(damaged.read_bytes()[:-100])
    changed = [items[0], renamed, items[2]]
    problems = [str(store.problem(item)) for item in changed]
    assert "has changed" in problems[0] and "not there yet" in problems[1] and "cannot be read" in problems[2]
    with caplog.at_level(logging.WARNING, "anatomy_ssl"):
        build_store(store, changed, workers=0)
    assert caplog.text.count("prepared anew") == 2
    assert [store.problem(item, verify=True) for item in changed] == [None] * 3
    assert not torch.equal(store.get(items[0])["image"].as_tensor(), old)
    other = ScanStore(tmp_path / "s", preparation(threshold=100.0))
    assert "not there yet" in str(other.problem(items[0])) and store.problem(items[0]) is None


def test_entries_with_the_same_image_are_kept_apart(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Of two readers' reference points, say."""
    twice = [{**items[0], "origin": [float(n), 0.0, 0.0]} for n in (1, 2)]
    dataset = ScanDataset(twice, [*preparation(), crops()], store=tmp_path / "s", num_workers=0)
    assert [dataset[i][0]["origin"][0] for i in (0, 1)] == [1.0, 2.0]


@pytest.mark.parametrize("workers", [0, 1])
def test_building_leaves_no_trace_in_the_training(workers: int, items: list[dict[str, Any]], tmp_path: Path) -> None:
    """The random numbers that come after it are those that come where the store is found, and where there is none."""
    numbers = []
    for store in (None, tmp_path / "s", tmp_path / "s"):
        torch.manual_seed(1)
        ScanDataset(items, [*preparation(), crops()], store=store, num_workers=workers, progress=False)
        numbers.append(float(torch.rand(1)))
    assert len(set(numbers)) == 1


def test_others_may_read_it(items: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = ScanStore(tmp_path / "s", preparation()).put(items[0])
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_entries_that_are_not_read_do_no_harm(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """An age that nobody knows, the path of a file that is not there, a type of a library."""
    item = {**items[0], "age": float("nan"), "report": str(tmp_path / "none.txt"), "dose": np.float32(2)}
    store = ScanStore(tmp_path / "s", preparation())
    store.put(item)
    assert store.problem(item) is None and store.problem({**item, "age": 3.0}) is not None


def test_a_label_that_changes_is_noticed(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a relative path, too."""
    monkeypatch.chdir(tmp_path)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), AFFINE), "organs.nii.gz")
    item = {**items[0], "label": "organs.nii.gz"}
    store = ScanStore(tmp_path / "s", preparation())
    store.put(item)
    assert store.problem(item) is None
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), AFFINE), "organs.nii.gz")
    assert "organs.nii.gz has changed" in str(store.problem(item))


def test_a_folder_that_cannot_be_written_to_is_named(items: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for workers in (0, 1):
        with pytest.raises(OSError, match=r"s cannot be written to .* give the crop store another folder"):
            ScanDataset(items, [*preparation(), crops()], store=tmp_path / "file" / "s", num_workers=workers)


def test_items_from_the_end(items: list[dict[str, Any]], tmp_path: Path) -> None:
    dataset = ScanDataset(items, [*preparation(), crops()], store=tmp_path / "s", num_workers=0)
    for first, second in zip(dataset[-1], dataset[np.int64(2)]):
        same(first, second)


def test_touching_a_source_changes_nothing(items: list[dict[str, Any]], tmp_path: Path) -> None:
    store = ScanStore(tmp_path / "s", preparation())
    store.put(items[0])
    os.utime(items[0]["image"], (1, 1))
    assert store.problem(items[0]) is None


def test_silent_damage_is_found_by_a_check(items: list[dict[str, Any]], tmp_path: Path) -> None:
    store = ScanStore(tmp_path / "s", preparation())
    build_store(store, items, workers=0)
    assert check_store(tmp_path / "s") == ({store.folder.name: 3}, [])
    path = store.path_of(items[1])
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    Path(items[2]["image"]).unlink()
    _, problems = check_store(tmp_path / "s")
    assert len(problems) == 2 and str(path) in problems[0] and "p2.nii.gz" in problems[1]
    build_store(store, items[:2], workers=0)
    assert len(check_store(tmp_path / "s")[1]) == 2
    build_store(store, items[:2], workers=0, verify=True)
    assert len(check_store(tmp_path / "s")[1]) == 1
    with pytest.raises(FileNotFoundError, match="store build"):
        check_store(tmp_path / "none")


def test_bad_scans_stop_or_are_left_out(
    items: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a scan is prepared well and too small for the crop, and where the source of a stored one is gone."""
    Path(items[1]["image"]).write_bytes(b"nothing")
    chain = [*preparation(), crops()]
    with pytest.raises(BadImageError, match=r"p1\.nii\.gz"):
        ScanDataset(items, chain, store=tmp_path / "s", num_workers=0)
    small = {"image": str(tmp_path / "small.nii.gz"), "subject": "small"}
    nib.save(nib.Nifti1Image(smooth_volume((7, 17, 19)), AFFINE), small["image"])
    dataset = ScanDataset([*items, small], chain, "skip", store=tmp_path / "s", num_workers=2)
    assert [Path(error.path).name for error in dataset.skipped] == ["p1.nii.gz", "small.nii.gz"]
    assert [item["subject"] for item in dataset.data] == ["p0", "p2"]
    assert len(dataset[0]) == 4 and dataset[(1, 1)][0]["subject"] == "p2"
    Path(items[0]["image"]).unlink()
    assert len(ScanDataset([*items, small], chain, "skip", store=tmp_path / "s", num_workers=0)) == 1


def test_a_full_disk_is_said_before_it_is_full(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScanStore, "free_bytes", lambda self: 1000)
    monkeypatch.setattr("anatomy_ssl.data.store_building._SAMPLE", 1)
    store = ScanStore(tmp_path / "s", preparation())
    with pytest.raises(OSError, match=r"2 scans need about .* MB more: give the crop store another folder"):
        build_store(store, items, workers=0)
    assert store.problem(items[0]) is None and store.problem(items[1]) is not None


def test_a_killed_build_leaves_nothing_half(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its remains are cleared away in time."""
    store = ScanStore(tmp_path / "s", preparation())

    def killed(tensors: Any, path: Any, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("anatomy_ssl.data.scan_store.save_file", killed)
        store.put(items[0])
    assert not list(store.folder.glob("*.safetensors"))
    left = store.folder / ".p0.safetensors.abc.tmp"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    build_store(store, items, workers=0)
    assert not left.exists() and check_store(tmp_path / "s")[1] == []


def test_what_cannot_be_stored_is_refused(items: list[dict[str, Any]], tmp_path: Path) -> None:
    chain = [LoadVolumed("image"), Lambdad("subject", lambda name: {name})]
    with pytest.raises(TypeError, match=r"'subject' is a set.*SelectItemsd"):
        ScanStore(tmp_path / "s", chain).put(items[0])
    with pytest.raises(StoredFileError, match="build the store anew"):
        ScanStore(tmp_path / "s", preparation()).get(items[0])


def test_a_mapped_volume_is_read_where_it_is_cut(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Tensors lie in the file, whole for as long as they are used, also when it is replaced or gone."""
    store = ScanStore(tmp_path / "s", preparation())
    path = store.put(items[0])
    image = store.get(items[0])["image"]
    before = image.as_tensor()
    store.put({**items[0], "subject": "again"})
    path.unlink()
    assert torch.equal(image.as_tensor(), before)


def build(folder: str, items: list[dict[str, Any]]) -> None:
    """In a process of its own."""
    for _ in range(3):
        for item in items:
            ScanStore(folder, preparation()).put(item)


def test_processes_build_one_store_at_once(items: list[dict[str, Any]], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=build, args=(str(tmp_path / "s"), items)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    counts, problems = check_store(tmp_path / "s")
    assert sum(counts.values()) == 3 and not problems


def share(rank: int, port: int, folder: str, items: list[dict[str, Any]], results: Any) -> None:
    """One of two processes of a training."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    written: list[str] = []
    put = ScanStore.put
    ScanStore.put = lambda self, item: written.append(item["subject"]) or put(self, item)  # type: ignore
    dataset = ScanDataset(items, [*preparation(), crops()], "skip", store=folder, num_workers=0)
    results.put((rank, written, [item["subject"] for item in dataset.data], len(dataset.skipped)))
    dist.destroy_process_group()


def test_processes_of_one_training_share_the_work(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """And leave out the same bad scans, whoever met them."""
    Path(items[1]["image"]).write_bytes(b"nothing")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (port, str(tmp_path / "s"), items, results)
    processes = [context.Process(target=share, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    assert found == [(0, ["p0", "p2"], ["p0", "p2"], 1), (1, ["p1"], ["p0", "p2"], 1)]
