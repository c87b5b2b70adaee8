"""Three files of one map that say the same."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from anatomy_ssl.data.embeddings import Embeddings
from anatomy_ssl.handlers.embeddings import EmbeddingWriter, evenly, save_rgb
from anatomy_ssl.transforms.points import voxel_to_world

AFFINE = nib.affines.from_matvec(
    np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([8.0, 8.0, 10.0]), [-40.0, 25.0, 7.0]
)
FLAT = np.array([[6.0, 0.0, 1.0], [0.0, -7.0, 2.0], [0.0, 0.0, 1.0]])


def scan(
    subject: str, source: str, grid: tuple[int, ...] = (6, 5, 7), features: int = 5, seed: int = 0, empty: bool = False
) -> dict[str, Any]:
    """A batch and the map of its one volume; the body is the first half along the first axis."""
    affine = torch.from_numpy(AFFINE if len(grid) == 3 else FLAT)
    values = torch.randn(1, features, *grid, generator=torch.Generator().manual_seed(seed))
    index = torch.cartesian_prod(*[torch.arange(n) for n in grid])
    points = voxel_to_world(affine, index[index[:, 0] < grid[0] // 2])
    return {
        "subject": [subject],
        "source": [source],
        "foreground": points[None] + (1e5 if empty else 0),
        "pred": MetaTensor(values, affine=affine),
    }


def write(folder: Path, scans: list[dict[str, Any]], **options: Any) -> None:
    """Run the handler as an evaluator would."""
    engine = Engine(lambda engine, batch: {"pred": batch["pred"]})
    EmbeddingWriter(str(folder), body_distance=1.0, **options).attach(engine)
    engine.run(scans)


def colours(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """RGB `(x, y, z, 3)` uint8 and affine of a written picture."""
    image = nib.load(path)
    voxels = np.asarray(image.dataobj)
    return np.stack([voxels[channel] for channel in "RGB"], -1), image.affine


@pytest.mark.parametrize("grid", [(6, 5, 7), (6, 5)])
def test_the_files_agree_in_geometry(grid: tuple[int, ...], tmp_path: Path) -> None:
    """Each row of the table is a coloured voxel of the picture at the same world position; every other is black."""
    batch = scan("p 1", "a/b.nii.gz", grid)
    write(tmp_path, [batch])
    table = Embeddings.load(tmp_path / "p_1.npz")
    assert set(table.subject) == {"p 1"}
    assert set(table.image) == {"a/b.nii.gz"}
    picture, affine = colours(tmp_path / "p_1_pca.nii.gz")
    assert picture.shape == (*grid, *[1] * (3 - len(grid)), 3)
    full = np.c_[table.position, np.zeros((len(table), 3 - len(grid)))]
    voxel = nib.affines.apply_affine(np.linalg.inv(affine), full)
    assert np.abs(voxel - voxel.round()).max() < 1e-3
    inside = np.zeros(picture.shape[:3], dtype=bool)
    inside[tuple(voxel.round().astype(int).T)] = True
    assert inside[: grid[0] // 2].all()
    assert not inside[grid[0] // 2 :].any()
    assert np.array_equal(picture.any(-1), inside)
    with open(tmp_path / "p_1.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    axes = "xyz"[: len(grid)]
    assert np.allclose([[float(row[axis]) for axis in axes] for row in rows], table.position)
    assert np.allclose([[float(row[f"e{k}"]) for k in range(5)] for row in rows], table.embedding)
    values = batch["pred"].as_tensor()[0].numpy()
    cells = voxel.round().astype(int)[:, : len(grid)]
    assert np.array_equal(table.embedding, np.stack([values[(slice(None), *cell)] for cell in cells]))


def test_scans_of_one_patient_do_not_overwrite_one_another(tmp_path: Path) -> None:
    """Nor do patients whose names make one file name."""
    names = [("p1", "d/first.nii.gz"), ("p1", "d/second.nii.gz"), ("p1", "e/second.nii.gz"), ("a b", "x"), ("a/b", "y")]
    write(tmp_path, [scan(subject, source, seed=i) for i, (subject, source) in enumerate(names)])
    tables = [Embeddings.load(path) for path in sorted(tmp_path.glob("*.npz"))]
    assert sorted((str(t.subject[0]), str(t.image[0])) for t in tables) == sorted(names)
    assert {path.name.removesuffix("_pca.nii.gz") for path in tmp_path.glob("*_pca.nii.gz")} == {
        path.stem for path in tmp_path.glob("*.npz")
    }
    assert len({t.embedding[0, 0] for t in tables}) == 5
    assert (tmp_path / "p1.csv").is_file()


def test_colours_are_comparable_between_scans(tmp_path: Path) -> None:
    """Equal embeddings have equal colours in every picture, since the components are common to all."""
    twin = scan("b", "b.nii", seed=0)
    write(tmp_path, [scan("a", "a.nii", seed=0), scan("c", "c.nii", seed=3), twin])
    a, b, c = (colours(tmp_path / f"{name}_pca.nii.gz")[0] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_fewer_features_than_colours(tmp_path: Path) -> None:
    """Two features give two colours; the body is still told from what is not."""
    write(tmp_path, [scan("a", "a.nii", features=2)], csv_embeddings=False)
    picture, _ = colours(tmp_path / "a_pca.nii.gz")
    assert picture[:3, ..., :2].all()
    assert not picture[..., 2].any()
    assert "e0" not in (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()[0]


def test_a_scan_without_a_crop_in_the_body(tmp_path: Path, caplog) -> None:
    """Is named, and the others are written all the same."""
    write(tmp_path, [scan("a", "lost.nii", empty=True), scan("b", "b.nii")])
    assert [record.getMessage() for record in caplog.records if "lost.nii" in record.getMessage()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.csv", "b.npz", "b_pca.nii.gz"]


def test_a_second_run_starts_anew(tmp_path: Path) -> None:
    """Names of an earlier run of the same evaluator are free again."""
    engine = Engine(lambda engine, batch: {"pred": batch["pred"]})
    EmbeddingWriter(str(tmp_path), body_distance=1.0).attach(engine)
    for _ in range(2):
        engine.run([scan("a", "a.nii")])
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_rows_are_taken_evenly() -> None:
    """First and last included, never more than asked for, each once."""
    rows = np.arange(10)[:, None]
    assert evenly(rows, 4).ravel().tolist() == [0, 3, 6, 9]
    assert evenly(rows, 100).ravel().tolist() == list(range(10))


def test_a_picture_is_the_same_file_each_time(tmp_path: Path) -> None:
    """No time stamp in it."""
    picture = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8)
    save_rgb(picture, AFFINE, tmp_path / "new" / "a.nii.gz")
    save_rgb(picture, AFFINE, tmp_path / "b.nii.gz")
    assert (tmp_path / "new" / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    read, affine = colours(tmp_path / "b.nii.gz")
    assert np.array_equal(read, picture)
    assert np.allclose(affine, AFFINE, atol=1e-5)
