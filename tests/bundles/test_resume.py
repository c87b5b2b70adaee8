"""A run that is stopped goes on to the same weights as one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bundles.runs import assert_same_weights, run, start, weights


@pytest.fixture(scope="module")
def whole(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs without a stop."""
    return run("training", tmp_path_factory.mktemp("whole"), cohort)


def test_a_run_is_deterministic(whole: Path, cohort: Path, tmp_path: Path) -> None:
    """Same seed, same weights; another seed, others."""
    assert_same_weights(whole, run("training", tmp_path, cohort))
    (tmp_path / "other").mkdir()
    other = run("training", tmp_path / "other", cohort, seed=1)
    with pytest.raises(AssertionError):
        assert_same_weights(whole, other)


def test_workers_change_nothing(whole: Path, cohort: Path, tmp_path: Path) -> None:
    """Crops depend on seed, epoch and patient, not on the process that cuts them."""
    assert_same_weights(whole, run("training", tmp_path, cohort, num_workers=2))


def test_resume_after_an_epoch(whole: Path, cohort: Path, tmp_path: Path) -> None:
    """One epoch, then two more: optimiser, schedule and order go on."""
    run("training", tmp_path, cohort, epochs=1)
    with pytest.raises(AssertionError):
        assert_same_weights(whole, tmp_path / "out")
    assert_same_weights(whole, run("training", tmp_path, cohort, resume=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("iteration", [2, 3, 5])
def test_resume_after_sigterm(whole: Path, cohort: Path, tmp_path: Path, iteration: int, workers: int) -> None:
    """Within an epoch or at its end, the run saves and ends with exit code 143; the next one goes on from there."""
    handler = {"+train#handlers": [{"_target_": "tests.bundles.runs.TerminateAt", "iteration": iteration}]}
    with pytest.raises(SystemExit) as stopped:
        run("training", tmp_path, cohort, num_workers=workers, **handler)
    assert stopped.value.code == 143
    assert not (tmp_path / "out" / "encoder.pt").exists()
    assert_same_weights(whole, run("training", tmp_path, cohort, resume=True, num_workers=workers))
    assert (tmp_path / "out" / "encoder.pt").exists()


def test_resume_after_death_while_writing_a_checkpoint(whole: Path, cohort: Path, tmp_path: Path) -> None:
    """The checkpoint before stays whole, and the run goes on from it."""
    handler = {"+train#handlers": [{"_target_": "tests.bundles.runs.DieWhileWriting", "epoch": 2}]}
    process = start("training", tmp_path, cohort, **handler)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 137, output
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["progress"]["iteration"] == 3
    assert_same_weights(whole, run("training", tmp_path, cohort, resume=True))


def test_earlier_run_is_not_overwritten(whole: Path, cohort: Path, tmp_path: Path) -> None:
    """Without resume, an output folder that holds a checkpoint is refused; resume without one is refused too."""
    with pytest.raises(RuntimeError) as refused:
        run("training", whole.parent, cohort)
    assert "checkpoint of an earlier run" in str(refused.value.__cause__)
    with pytest.raises(RuntimeError) as absent:
        run("training", tmp_path, cohort, resume=True)
    assert "no run to resume" in str(absent.value.__cause__)
    assert weights(run("training", tmp_path, cohort, resume="auto", epochs=1))


def test_other_batch_size_cannot_resume(cohort: Path, tmp_path: Path) -> None:
    """The place in the run would be another."""
    run("training", tmp_path, cohort, epochs=1)
    with pytest.raises(RuntimeError) as refused:
        run("training", tmp_path, cohort, resume=True, volumes_per_batch=1)
    assert "iterations an epoch" in str(refused.value.__cause__)
