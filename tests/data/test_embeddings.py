from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from anatomy_ssl.data.embeddings import Embeddings


def example(dimensions: int = 3) -> Embeddings:
    rng = np.random.default_rng(0)
    return Embeddings(
        embedding=rng.normal(size=(5, 4)),
        position=rng.normal(size=(5, dimensions)) * 100,
        subject=np.array(["a", "a", "bé", "bé", "c, d"]),
        image=np.array([f"scan {k}.nii.gz" for k in range(5)]),
        origin=rng.normal(size=(5, dimensions)),
        extra={
            "lesion_volume_mm3": np.arange(5.0),
            "grid": np.arange(10).reshape(5, 2),
            "side": np.array(list("lrlrl")),
        },
    )


def assert_same(a: Embeddings, b: Embeddings) -> None:
    for name in ("embedding", "position", "origin", "subject", "image"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert list(a.extra) == list(b.extra)
    for name, values in a.extra.items():
        np.testing.assert_array_equal(values, b.extra[name])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_round_trip(tmp_path: Path, dimensions: int) -> None:
    emb = example(dimensions)
    assert emb.embedding.dtype == emb.position.dtype == emb.origin.dtype == np.float32
    assert_same(Embeddings.load(emb.save(tmp_path / "new" / "e.npz")), emb)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["e.npz"]


def test_the_file_holds_no_pickles(tmp_path: Path) -> None:
    path = example().save(tmp_path / "e.npz")
    with zipfile.ZipFile(path) as archive:
        headers = [archive.read(name)[:128] for name in archive.namelist()]
    assert len(headers) == 8
    assert not any(b"'|O'" in header for header in headers)
    with pytest.raises(ValueError, match="extra"):
        Embeddings(np.zeros((1, 2)), np.zeros((1, 3)), np.array(["a"]), extra={"extra": np.array([{}], dtype=object)})


def test_tensors_and_single_values_are_taken() -> None:
    emb = Embeddings(
        torch.ones(2, 4, dtype=torch.bfloat16, requires_grad=True).float(),
        torch.zeros(2, 3),
        torch.tensor([7, -8]),
        "scan.nii",
        torch.tensor([1.0, 2, 3]),
    )
    assert emb.subject.tolist() == ["7", "-8"]
    assert emb.image.tolist() == ["scan.nii"] * 2
    np.testing.assert_array_equal(emb.anatomical_position, [[-1, -2, -3]] * 2)


def test_the_origin_is_zero_where_none_is_given() -> None:
    emb = Embeddings(np.zeros((2, 4)), np.ones((2, 2)), np.array(["a", "b"]))
    np.testing.assert_array_equal(emb.anatomical_position, emb.position)


def test_parts_join_to_the_whole() -> None:
    emb = example()
    rows = emb.subject == "a"
    assert len(emb.select(rows)) == 2
    assert_same(Embeddings.concatenate([emb.select(rows), emb.select(np.flatnonzero(~rows))]), emb)


def test_joining_what_does_not_fit() -> None:
    emb = example()
    with pytest.raises(ValueError, match="cannot be joined"):
        Embeddings.concatenate([emb, Embeddings(emb.embedding, emb.position, emb.subject)])
    with pytest.raises(ValueError, match="no embeddings"):
        Embeddings.concatenate([])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embedding", np.zeros(5)),
        ("position", np.zeros((5, 4))),
        ("position", np.zeros((4, 3))),
        ("subject", np.array(["a"] * 4)),
        ("image", np.array(["a"] * 4)),
        ("origin", np.zeros((5, 2))),
        ("lesion", np.zeros(4)),
    ],
)
def test_wrong_shapes_are_named(field: str, value: np.ndarray) -> None:
    emb = example()
    fields = {"embedding": emb.embedding, "position": emb.position, "subject": emb.subject}
    fields.update({"extra": {field: value}} if field == "lesion" else {field: value})
    with pytest.raises(ValueError, match=field):
        Embeddings(**fields)


@pytest.mark.parametrize("field", ["embedding", "position", "origin"])
def test_values_that_are_not_finite_are_named(field: str) -> None:
    emb = example()
    fields = {name: getattr(emb, name).copy() for name in ("embedding", "position", "origin", "subject")}
    fields[field][3, 1] = np.nan
    with pytest.raises(ValueError, match=f"{field} is not finite in row 3 .subject bé"):
        Embeddings(**fields)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    with pytest.raises(FileNotFoundError, match=r"e\.npz"):
        Embeddings.load(path)
    example().save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:200] + bytes(60) + whole[260:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"e\.npz"):
            Embeddings.load(path)
    np.savez(path, embedding=np.zeros((2, 3)), position=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"e\.npz lacks the array subject, image, origin"):
        Embeddings.load(path)
    emb = example()
    np.savez(path, **{n: getattr(emb, n) for n in ("embedding", "position", "image", "origin")}, subject=np.array([{}]))
    with pytest.raises(ValueError, match=r"e\.npz"):
        Embeddings.load(path)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emb = example()
    path = emb.save(tmp_path / "e.npz")

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stop)
    with pytest.raises(KeyboardInterrupt):
        emb.select(np.arange(2)).save(path)
    assert_same(Embeddings.load(path), emb)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_csv(tmp_path: Path, dimensions: int) -> None:
    emb = example(dimensions)
    with open(emb.to_csv(tmp_path / "e.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    axes = "xyz"[:dimensions]
    assert list(rows[0]) == [
        *("subject", "image", *axes, *(f"origin_{axis}" for axis in axes)),
        *("lesion_volume_mm3", "grid_0", "grid_1", "side", "e0", "e1", "e2", "e3"),
    ]
    assert [row["subject"] for row in rows] == emb.subject.tolist()
    read = np.array([[row[axis] for axis in axes] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(read, emb.position)
    np.testing.assert_array_equal(np.array([row["e3"] for row in rows], dtype=np.float32), emb.embedding[:, 3])
    with open(emb.to_csv(tmp_path / "short.csv", embedding=False), encoding="utf-8") as file:
        assert file.readline().strip().endswith("grid_1,side")
