"""Alice's pre-training in two gloo processes: equal weights, one set of metrics, and stage 1 beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundles.alice_runs import CONFIGS, checkpoint, two_processes, workflow


@pytest.fixture(scope="module")
def several(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of two processes, with four validation patients."""
    folder = tmp_path_factory.mktemp("several")
    done = two_processes(folder, cohort, val_items="$@train_items[:3]")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_two_processes_end_with_equal_weights_and_metrics(several: Path) -> None:
    first, second = (torch.load(several / f"process_{rank}.pt", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["metrics"] == pytest.approx(second["metrics"])
    centres = checkpoint(several / "out")["loss"]
    assert all(centre.abs().sum() > 0 for centre in centres.values())


def test_their_metrics_are_those_of_one_process(several: Path, cohort: Path, tmp_path: Path) -> None:
    """With the same weights and centres, over the same pairs."""
    run = workflow(tmp_path, cohort, val_items="$@train_items[:3]")
    saved = checkpoint(several / "out")
    run.parser.get_parsed_content("network_def").load_state_dict(saved["model"])
    loss = run.parser.get_parsed_content("loss")
    loss.load_state_dict(saved["loss"])
    evaluator = run.parser.get_parsed_content("validate#evaluator")
    # the temperature of the last epoch, of which a checkpoint says nothing
    temperatures = run.parser.get_parsed_content("train#handlers")[4]
    run.parser.get_parsed_content("train#trainer").state.epoch = 2
    temperatures(run.parser.get_parsed_content("train#trainer"))
    evaluator.run()
    expected = torch.load(several / "process_0.pt", weights_only=False)["metrics"]
    assert evaluator.state.metrics == pytest.approx(expected, abs=1e-5)


def test_the_learning_rate_counts_the_processes() -> None:
    overlay = ConfigParser.load_config_file(CONFIGS / "multi_gpu_pretrain.yaml")
    recipe = ConfigParser.load_config_file(CONFIGS / "pretrain.yaml")
    assert overlay["processes"] == "$torch.distributed.get_world_size()"
    assert "@processes" in recipe["step_learning_rate"]
    assert overlay["run"][:-1] == recipe["run"]


def test_an_absent_embedding_is_named_with_both_commands(cohort: Path, tmp_path: Path) -> None:
    """The processes do not train stage 1."""
    matcher = ConfigParser.load_config_file(CONFIGS / "pretrain.yaml")["matcher"]
    done = two_processes(tmp_path, cohort, matcher=matcher)
    assert done.returncode != 0
    assert "pretrain_embedding.yaml" in done.stdout + done.stderr
    assert "embed.yaml" in done.stdout + done.stderr
