"""Two processes train and measure as one does: torchrun with gloo on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bundles.runs import TINY, assert_same_weights, parsed, run, start

TWO = ("--nproc_per_node=2", "--standalone")
# four patients make two full batches; three to validate do not share evenly
SAME: dict[str, Any] = {
    "epochs": 2,
    "encoder": {**TINY["encoder"], "dropout": 0.0},
    "train_items": "$anatomy_ssl.data.load_datalist(@dataset_dir, 'training')[:4]",
    "val_items": "$anatomy_ssl.data.load_datalist(@dataset_dir, 'all')[:3]",
}


def handlers(folder: Path, *others: dict[str, Any]) -> dict[str, Any]:
    """A change of the configuration: what each process has at the end is written to the folder."""
    record = {"_target_": "tests.bundles.runs.RecordProcess", "folder": str(folder)}
    record |= {"network": "@network_def", "evaluator": "@validate#evaluator"}
    return {"+train#handlers": [record, *others]}


def torchrun(folder: Path, cohort: Path, **changes: Any) -> tuple[int, str]:
    """Two processes of one volume each; exit code and output."""
    names = ("multi_gpu_pretrain.yaml",)
    process = start("training", folder, cohort, TWO, names=names, volumes_per_batch=1, **SAME, **changes)
    output, _ = process.communicate(timeout=180)
    return process.returncode, output


@pytest.fixture(scope="module")
def two(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole run in two processes."""
    folder = tmp_path_factory.mktemp("two")
    code, output = torchrun(folder, cohort, **handlers(folder))
    assert code == 0, output
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    """What the processes wrote."""
    return [torch.load(file, weights_only=False) for file in sorted(folder.glob("process_*.pt"))]


def test_processes_end_with_equal_weights_and_write_once(two: Path) -> None:
    """One checkpoint and one encoder, under the names of a run without processes."""
    first, second = records(two)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["metrics"] == second["metrics"]
    assert sorted(file.name for file in (two / "out").iterdir()) == ["checkpoint.pt", "encoder.pt"]
    saved = torch.load(two / "out" / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in first["weights"].items())


def test_two_processes_train_as_one_with_the_whole_batch(two: Path, cohort: Path, tmp_path: Path) -> None:
    """Same weights up to rounding; biases apart, which move no distance, so that their gradient is rounding alone."""
    run("training", tmp_path, cohort, volumes_per_batch=2, **SAME, **handlers(tmp_path))
    (one,), (first, _) = records(tmp_path), records(two)
    for name, value in one["weights"].items():
        if not name.endswith("bias"):
            torch.testing.assert_close(first["weights"][name], value, rtol=1e-5, atol=1e-6)


def test_validation_is_that_of_one_process(two: Path, cohort: Path, tmp_path: Path) -> None:
    """The metrics of the last epoch, from the same weights on the same crops, every crop once."""
    parser = parsed(tmp_path, cohort, **SAME)
    first, _ = records(two)
    parser.get_parsed_content("network_def").load_state_dict(first["weights"])
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run(global_epoch=2)
    assert evaluator.state.metrics.keys() == first["metrics"].keys()
    assert {"rho_within", "rho_across", "position_error_mm", "rankme", "spread"} <= evaluator.state.metrics.keys()
    for name, value in evaluator.state.metrics.items():
        assert first["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_signal_to_one_process_stops_both_and_they_go_on(two: Path, cohort: Path, tmp_path: Path) -> None:
    """In the middle of an epoch; the resumed run ends with the weights of the one that was not stopped."""
    stop = {"_target_": "tests.bundles.runs.TerminateAt", "iteration": 3, "rank": 1}
    code, output = torchrun(tmp_path, cohort, **handlers(tmp_path, stop))
    assert code != 0
    progress = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["progress"]
    assert progress["iteration"] == 3, output
    assert "stopped by SIGTERM" in output
    assert not (tmp_path / "out" / "encoder.pt").exists()
    code, output = torchrun(tmp_path, cohort, resume=True, **handlers(tmp_path))
    assert code == 0, output
    assert_same_weights(two / "out", tmp_path / "out")


def test_too_few_images_to_validate_with_are_refused(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without an image would skip the validation, and the others wait for it for ever."""
    parser = parsed(tmp_path, cohort)
    assert len(parser.get_parsed_content("validate#dataset")) == 1
    monkeypatch.setattr("anatomy_ssl.data.sampler.dist.is_initialized", lambda: True)
    monkeypatch.setattr("anatomy_ssl.data.sampler.dist.get_world_size", lambda: 2)
    monkeypatch.setattr("anatomy_ssl.data.sampler.dist.get_rank", lambda: 0)
    with pytest.raises(RuntimeError) as refused:
        parser.get_parsed_content("validate#sampler")
    assert "1 validation images are too few for 2 processes" in repr(refused.value.__cause__)
