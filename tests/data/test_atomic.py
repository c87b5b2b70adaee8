from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from anatomy_ssl.data.atomic import atomic_save, atomic_write


def test_round_trip_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.pt"
    atomic_save({"a": torch.arange(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(3))
    assert os.listdir(path.parent) == ["weights.pt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "weights.pt"
    atomic_save({"a": 1}, path)
    before = path.read_bytes()
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["weights.pt"]


def test_a_failing_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(obj: object, file: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    path = tmp_path / "weights.pt"
    path.write_bytes(b"old")
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        atomic_save({}, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.pt"]


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_arrays_can_be_written(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.npz") as file:
        np.savez(file, x=np.arange(4))
    with np.load(tmp_path / "a.npz") as content:
        assert content["x"].tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX systems")
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        atomic_save({}, tmp_path / "weights.pt")
    finally:
        os.umask(old)
    assert (tmp_path / "weights.pt").stat().st_mode & 0o777 == 0o666 & ~umask
