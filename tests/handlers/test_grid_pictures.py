"""Pictures of views, restorations and orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from anatomy_ssl.engines.grid_batch import PrepareGridViews
from anatomy_ssl.handlers.grid_pictures import GridPictures, put_back
from anatomy_ssl.transforms.cells import permute_cells

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


class Student(nn.Module):
    """Restores by copying, and names the cells in the order given."""

    def __init__(self, cells: int, heads: bool = True) -> None:
        super().__init__()
        self.cells, self.heads = cells, heads

    def forward(self, views: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of the first view."""
        assert not self.training
        if not self.heads:
            return {}
        return {"restored": views[0], "order": torch.eye(self.cells).expand(len(views[0]), -1, -1)}


class Pair(nn.Module):
    """A student alone."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student


class Writer:
    """Stands for TensorBoard's."""

    def __init__(self) -> None:
        self.images: list[tuple[str, tuple[int, ...], int]] = []

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        """Remember it."""
        assert dataformats == "HWC"
        self.images.append((tag, image.shape, step))


def batch(dims: int, count: int = 6) -> dict[str, Any]:
    """Images of 3 x 2 (x 2) cells of 4 voxels."""
    generator = torch.Generator().manual_seed(0)
    views = {f"image_{v}": torch.rand(count, 1, *(12, 8, 8)[:dims], generator=generator) for v in (1, 2)}
    starts = {f"cell_{v}": torch.randint(0, 2, (count, dims), generator=generator) for v in (1, 2)}
    return {**views, **starts, "subject": [f"p{i}" for i in range(count)]}


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_pictures_are_drawn_when_due(tmp_path: Path, dims: int, heads: bool) -> None:
    grid = (3, 2, 2)[:dims]
    network, writer = Pair(Student(3 * 2 ** (dims - 1), heads)).train(), Writer()
    engine = Engine(lambda engine, batch: None)
    prepare = PrepareGridViews(grid, seed=0)
    GridPictures(network, [batch(dims)], prepare, str(tmp_path / "pictures"), grid, writer, interval=3).attach(engine)
    engine.run([0], max_epochs=4)
    files = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in files] == ["views_epoch_0001.png", "views_epoch_0003.png"]
    for path, (tag, shape, step) in zip(files, writer.images):
        with Image.open(path) as picture:
            assert (tag, shape[:2]) == ("views", picture.size[::-1])
        assert path.stem.endswith(str(step))
    assert network.student.training


@pytest.mark.parametrize("order_prob", [0.0, 0.5, 1.0])
def test_half_of_the_rows_are_shuffled_where_there_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order_prob: float
) -> None:
    drawn: list[Any] = []

    def draw(panels: Any, grid: Any, frames: Any, empty: Any, names: list[str], title: str) -> np.ndarray:
        drawn.append((panels, frames, empty, names))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("anatomy_ssl.handlers.grid_pictures.grid_view_image", draw)
    engine, prepare = Engine(lambda engine, batch: None), PrepareGridViews((3, 2), order_prob=order_prob, seed=0)
    given = batch(2, 20)
    GridPictures(Pair(Student(6)), [given], prepare, str(tmp_path), (3, 2)).attach(engine)
    engine.run([0], max_epochs=1)
    ((panels, frames, empty, names),) = drawn
    assert len(names) == 4
    assert sum("shuffled" in name for name in names) == {0.0: 0, 0.5: 2, 1.0: 4}[order_prob]
    assert not empty["put in order"].any()  # this student leaves every cell where it is shown
    np.testing.assert_array_equal(panels["put in order"], panels["as the student saw it"])
    for row, name in enumerate(names):
        number = int(name.split("\n")[0][1:])
        offset = (given["cell_2"] - given["cell_1"])[number].tolist()
        shared = np.zeros((3, 2), bool)
        for r in range(3):
            for c in range(2):
                shared[r, c] = 0 <= r - offset[0] < 3 and 0 <= c - offset[1] < 2
        np.testing.assert_array_equal(frames["view 1"][row], shared)
        assert frames["view 2"][row].sum() == shared.sum()


def test_cells_are_put_where_the_scores_say() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 1, 12, 8, generator=generator)
    order = torch.rand(3, 6, generator=generator).argsort(dim=1)
    shown = permute_cells(clean, order, (3, 2))
    back, empty = put_back(shown, 9 * nn.functional.one_hot(order, 6).float(), (3, 2))
    assert torch.equal(back, clean)
    assert not empty.any()
    scores = torch.zeros(3, 6, 6)
    scores[:, :, 4] = torch.tensor([1.0, 5.0, 2.0, 3.0, 4.0, 0.5])  # all belong to place 4, that at place 1 most surely
    back, empty = put_back(shown, scores, (3, 2))
    assert empty.sum(dim=1).tolist() == [5, 5, 5]
    assert torch.equal(back[:, :, 8:, :4], shown[:, :, :4, 4:])
