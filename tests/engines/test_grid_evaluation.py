"""The held-out evaluation of PEAC's pretext tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anatomy_ssl.data.atomic import atomic_save
from anatomy_ssl.engines.grid_batch import PrepareGridViews
from anatomy_ssl.engines.grid_evaluation import GridEvaluation
from anatomy_ssl.networks.grid_consistency import GridConsistencyNetwork
from anatomy_ssl.networks.momentum import StudentTeacher

GRID = (4, 4)


def network(seed: int) -> GridConsistencyNetwork:
    """One linear token per cell of 4 pixels."""
    torch.manual_seed(seed)
    return GridConsistencyNetwork(nn.Conv2d(1, 32, 4, stride=4), 32, GRID, 4, global_features=8, local_features=8)


def views() -> list[dict[str, Any]]:
    """Two views of one lattice; the brightness of a cell is its place."""
    lattice = torch.kron(torch.linspace(0, 1, 36).reshape(6, 6), torch.ones(4, 4))
    starts = [[(0, 0), (2, 1)], [(1, 0), (1, 2)]]
    crops = [[lattice[4 * r : 4 * r + 16, 4 * c : 4 * c + 16][None] for r, c in pair] for pair in starts]
    return [
        {
            "image_1": torch.stack([pair[0] for pair in crops]),
            "image_2": torch.stack([pair[1] for pair in crops]),
            "cell_1": torch.tensor([pair[0] for pair in starts]),
            "cell_2": torch.tensor([pair[1] for pair in starts]),
            "subject": ["a", "b"],
        }
    ]


def evaluation(tmp_path: Path, **kwargs: Any) -> GridEvaluation:
    pair = StudentTeacher(network(0))
    with torch.no_grad():
        for parameter in pair.teacher.parameters():
            parameter.zero_()
    atomic_save({"model": pair.state_dict()}, tmp_path / "checkpoint.pt")
    arguments: dict[str, Any] = {
        "network": network(1),
        "checkpoints": {"trained": str(tmp_path / "checkpoint.pt")},
        "random_networks": [network(2), network(3)],
        "loader": views(),
        "prepare_batch": PrepareGridViews(GRID, seed=0),
        "output_dir": str(tmp_path),
    }
    return GridEvaluation(**{**arguments, **kwargs})


def test_takes_the_part_that_it_is_told(tmp_path: Path) -> None:
    """The teacher of this checkpoint is all zeros, its student is not."""
    teacher, student = (evaluation(tmp_path, part=part).run()[0] for part in ("teacher", "student"))
    assert teacher["token_spread"] == 0
    assert student["token_spread"] > 0
    assert (tmp_path / "evaluation.csv").is_file()


def test_random_networks_stand_beside(tmp_path: Path) -> None:
    rows = evaluation(tmp_path).run()
    assert [row["network"] for row in rows] == ["trained", "random, mean of 2", "random, sd of 2"]
    with pytest.raises(ValueError, match="random"):
        evaluation(tmp_path, random_networks=[])


def test_is_repeatable(tmp_path: Path) -> None:
    assert str(evaluation(tmp_path).run()) == str(evaluation(tmp_path).run())


def test_another_network_s_checkpoint_is_refused(tmp_path: Path) -> None:
    other = GridConsistencyNetwork(nn.Conv2d(1, 16, 4, stride=4), 16, GRID, 4, global_features=8, local_features=8)
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        evaluation(tmp_path, network=other)
