"""Pictures of matched views and of what is restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from anatomy_ssl.engines.pair_batch import PreparePairs
from anatomy_ssl.handlers import pair_pictures
from anatomy_ssl.handlers.pair_pictures import PairPictures
from tests.engines.test_pair_batch import batch
from tests.handlers.test_grid_pictures import Pair, Writer

pytest.importorskip("matplotlib")
pytest.importorskip("PIL.Image")


class Student(nn.Module):
    """Restores nines everywhere, or nothing."""

    def __init__(self, restores: bool) -> None:
        super().__init__()
        self.restores = restores

    def forward(self, x: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Of the first views."""
        assert not self.training
        return {"restored_1": torch.full_like(x["masked"][0], 9.0)} if self.restores else {}


@pytest.mark.parametrize("restores", [True, False])
@pytest.mark.parametrize("size", [(16, 16, 16), (16, 24)])
def test_pictures_are_drawn_when_due(tmp_path: Path, size: tuple[int, ...], restores: bool) -> None:
    network, writer = Pair(Student(restores)).train(), Writer()
    prepare = PreparePairs(block_size=8, seed=0)
    engine = Engine(lambda engine, batch: None)
    PairPictures(network, [batch(5, size)], prepare, str(tmp_path), writer, interval=2, pairs=3).attach(engine)
    before = torch.random.get_rng_state()
    engine.run([0], max_epochs=3)
    kinds = ["pairs", "restored"] if restores else ["pairs"]
    assert {file.name for file in tmp_path.iterdir()} == {f"{k}_epoch_000{e}.png" for k in kinds for e in (1, 2)}
    assert [(tag, step) for tag, _, step in writer.images] == [(kind, epoch) for epoch in (1, 2) for kind in kinds]
    assert network.student.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_masked_voxels_are_shown_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rows say who is paired with whom, how well, and whether it is a fall-back."""
    drawn: list[tuple[dict[str, np.ndarray], list[str], Any]] = []

    def remember(panels: Any, names: Any, title: str, at: Any = None) -> np.ndarray:
        drawn.append((panels, names, at))
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(pair_pictures, "view_rows_image", remember)
    made = batch(3)
    made["fell_back"][1] = True
    prepare = PreparePairs(block_size=8, seed=0)
    engine = Engine(lambda engine, batch: None)
    PairPictures(Pair(Student(True)), [made], prepare, str(tmp_path), pairs=2).attach(engine)
    engine.run([0], max_epochs=1)
    (views, names, middle), (panels, _, at) = drawn
    assert (middle, at) == (None, [12, 12, 12])  # of views of 16^3 voxels in blocks of 8^3
    assert names == ["patient 1\npatient 2\nscore 0.90", "patient 2\npatient 3\nscore 0.90\n(fall-back)"]
    assert np.array_equal(views["view 2"], made["view_2"][:2, 0].numpy())
    mask = prepare(made)[1]["mask_1"][:2, 0].numpy()
    assert (panels["restored"][mask] == 9).all()
    assert np.array_equal(panels["restored"][~mask], panels["whole"][~mask])
    assert (panels["as the student saw it"][mask] == 0).all()
