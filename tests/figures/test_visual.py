"""Pictures of the visual tests: large enough, and showing what they are given where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="figures need matplotlib (pip install anatomy-ssl[figures])")

from anatomy_ssl.figures.correspondence import Picture, correspondence_figure
from anatomy_ssl.figures.tokens import cosegmentation_figure, landmark_tsne
from tests.figures.pictures import pixels


def pictures() -> list[Picture]:
    """A and two B of other sizes."""
    rng = np.random.default_rng(0)
    affine = np.array([[4.0, 0, 1.5], [0, 4, 1.5], [0, 0, 1]])
    sizes = [(80, 60), (64, 64), (60, 100)]
    return [Picture(rng.random((r // 4, c // 4)), affine, np.array([r, c]), f"p{r}") for r, c in sizes]


def test_correspondence(tmp_path: Path) -> None:
    query = np.array([[10.0, 20], [50, 30]])
    truth = [query + 2, np.array([[12.0, 22], [np.nan, np.nan]])]
    cosine = [(np.random.default_rng(1).uniform(-1, 1, (5, 5)), np.diag([12.0, 12, 1])) for _ in range(3)]
    found = {"trained": [query, query], "random": [query + 5, query + 5]}
    path = correspondence_figure(pictures(), query, found, truth, {0: cosine}, tmp_path / "a.png", ("x", "y"))
    picture = pixels(path).astype(int)
    orange = (abs(picture - (0xE6, 0x9F, 0x00)) < 40).all(axis=2)
    assert orange.mean() > 0.002
    assert pixels(correspondence_figure(pictures(), query, found, None, {}, tmp_path / "b.png")).std() > 5


def test_tsne_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = np.repeat(["a_b", "c", "d"], 6)
    z = {"one": rng.normal(size=(18, 4)), "two": rng.normal(size=(18, 2))}
    first, second = (landmark_tsne(z, names, tmp_path / f"{k}.png", seed=1) for k in "ab")
    np.testing.assert_array_equal(pixels(first), pixels(second))


@pytest.mark.parametrize("clusters", [3, 12])
def test_cosegmentation(tmp_path: Path, clusters: int) -> None:
    rng = np.random.default_rng(0)
    maps = [(rng.integers(0, clusters, (8, 8)), np.diag([9.0, 9, 1])) for _ in range(3)]
    mask = np.zeros((80, 60), bool)
    mask[20:40, 20:40] = True
    pixels(cosegmentation_figure(pictures(), {"trained": maps}, [mask, None, None], tmp_path / "a.png"))
