"""Alice's pre-training stopped anywhere goes on to the same weights, and centres, as one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bundles.alice_runs import checkpoint, train, workflow
from tests.bundles.runs import TerminateAt, assert_same_weights


@pytest.fixture(scope="module")
def whole(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of three iterations without a stop."""
    return train(tmp_path_factory.mktemp("whole"), cohort, epochs=3)


def assert_same_end(a: Path, b: Path) -> None:
    """Weights, centres and the optimiser's moments."""
    assert_same_weights(a, b)
    first, second = checkpoint(a), checkpoint(b)
    assert all(torch.equal(value, second["loss"][name]) for name, value in first["loss"].items())
    moments = [state["exp_avg"] for state in first["optimizer"]["state"].values()]
    assert all(torch.equal(m, s["exp_avg"]) for m, s in zip(moments, second["optimizer"]["state"].values()))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("iteration", [2, 4, 6])
def test_resume_after_sigterm(whole: Path, cohort: Path, tmp_path: Path, iteration: int, workers: int) -> None:
    """In the frozen first epoch, in the second and at its end; pairs, masks, schedules and momentum go on."""
    run = workflow(tmp_path, cohort, epochs=3, num_workers=workers)
    TerminateAt(iteration).attach(run.parser.get_parsed_content("train#trainer"))
    with pytest.raises((SystemExit, RuntimeError)):
        run.run()
    assert not (tmp_path / "out" / "encoder.pt").exists()
    assert_same_end(whole, train(tmp_path, cohort, epochs=3, num_workers=workers, resume=True))


def test_seeds_and_workers(whole: Path, cohort: Path, tmp_path: Path) -> None:
    """Two workers come to the same; another seed does not."""
    assert_same_end(whole, train(tmp_path / "workers", cohort, epochs=3, num_workers=2))
    with pytest.raises(AssertionError):
        assert_same_weights(whole, train(tmp_path / "seed", cohort, epochs=3, seed=1))
