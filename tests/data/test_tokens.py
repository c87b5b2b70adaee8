"""Token maps keep their places, in memory and in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anatomy_ssl.data.tokens import TokenMap


def token_map(**changes: object) -> TokenMap:
    """Three by four tokens of cells of 8 pixels, in a radiograph with pixels of 0.5 mm."""
    affine = np.array([[8.0, 0, 3.5], [0, 8, 3.5], [0, 0, 1]])
    tokens = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float16)
    plain = TokenMap(tokens, affine, np.array([24, 32]), np.array([8.0, 8]), "p1", "a/p1.png", np.diag([0.5, 0.5, 1]))
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", [np.diag([0.5, 0.5, 1]), None])
def test_a_file_gives_back_what_was_written(tmp_path: Path, spacing: np.ndarray | None) -> None:
    written = token_map(pixel_to_mm=spacing)
    read = TokenMap.load(written.save(tmp_path / "new" / "p1.npz"))
    assert (read.subject, read.source, read.tokens.dtype) == ("p1", "a/p1.png", np.float16)
    for name in ("tokens", "affine", "image_size", "cell_size"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.pixel_to_mm is None) == (spacing is None)
    with np.load(tmp_path / "new" / "p1.npz", allow_pickle=False) as file:
        assert file["position"][2, 1].tolist() == [19.5, 11.5]
        mm = file["position_mm"][2, 1]
        assert np.isnan(mm).all() if spacing is None else mm.tolist() == [9.75, 5.75]


def test_index_and_position_are_inverse() -> None:
    m = token_map()
    index = np.moveaxis(np.indices(m.grid), 0, -1)
    np.testing.assert_allclose(m.index_of(m.position.reshape(-1, 2)).reshape(*m.grid, 2), index, atol=1e-6)


@pytest.mark.parametrize("point", [(-1, 3), (3, 32), (24, 0)])
def test_points_outside_are_refused(point: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"a/p1\.png: the point \(.*\) lies outside of the image of 24 x 32 pixels"):
        token_map().index_of(np.array([[1, 1], point]))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = token_map().save(tmp_path / "p1.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"p1\.npz is not a whole npz file"):
        TokenMap.load(path)
    np.savez(tmp_path / "other.npz", tokens=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz lacks the array affine"):
        TokenMap.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError, match="no tokens at"):
        TokenMap.load(tmp_path / "none.npz")
