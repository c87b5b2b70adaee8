"""What a run shows while it goes on: TensorBoard, MLflow, pictures, and the switches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fire
import monai.bundle
import pytest
import torch

from anatomy_ssl.handlers import switch
from tests.bundles.runs import config_files, parsed, run

QUALITY = {"rho_within", "rho_across", "position_error_mm", "position_r2", "rankme", "spread", "collapsed"}
LOSSES = {"loss", "loss_distance", "loss_barlow"}
SPEED = {"samples_per_second", "data_wait", "memory_mb", "seconds_left"}
# two patients at least, for what is measured across patients
THREE_TO_VALIDATE = "$anatomy_ssl.data.load_datalist(@dataset_dir, 'all')[:3]"


@pytest.fixture(scope="module")
def logged(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three iterations, a loss of two terms, with TensorBoard and pictures."""
    pytest.importorskip("tensorboard")
    changes: dict[str, Any] = {"epochs": 2, "tensorboard": True, "pictures": True, "val_items": THREE_TO_VALIDATE}
    return run("training", tmp_path_factory.mktemp("logged"), cohort, ("variant_barlow_isimed.yaml",), **changes)


def test_tensorboard_holds_every_term_and_metric(logged: Path) -> None:
    """A point for each epoch, and for each iteration under names of their own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logged / "tensorboard"))
    events.Reload()
    iterations = {"iteration/loss", "iteration/distance", "iteration/barlow"}
    assert set(events.Tags()["scalars"]) == QUALITY | LOSSES | SPEED | iterations
    for tag in QUALITY | LOSSES | SPEED:
        assert [event.step for event in events.Scalars(tag)] == [1, 2], tag
        assert all(torch.isfinite(torch.tensor(event.value)) for event in events.Scalars(tag)), tag
    for tag in iterations:
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4, 5, 6], tag
    mean = sum(event.value for event in events.Scalars("iteration/barlow")[:3]) / 3
    assert events.Scalars("loss_barlow")[0].value == pytest.approx(mean, rel=1e-5)
    assert events.Tags()["images"] == ["crops"]


def test_pictures_of_crops(logged: Path) -> None:
    """Of the first epoch, and then at intervals."""
    assert [file.name for file in (logged / "pictures").iterdir()] == ["crops_epoch_0001.png"]


def test_mlflow_holds_training_and_validation_in_one_run(cohort: Path, tmp_path: Path) -> None:
    """Which is finished when training is."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    output = run("training", tmp_path, cohort, epochs=2, mlflow="true", val_items=THREE_TO_VALIDATE)
    client = mlflow.MlflowClient(f"sqlite:///{output}/mlruns.db")
    (experiment,) = [e for e in client.search_experiments() if client.search_runs([e.experiment_id])]
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.info.run_name == str(output)
    assert only.info.status == "FINISHED"
    assert set(only.data.metrics) == QUALITY | SPEED | LOSSES - {"loss_barlow"}
    for name in only.data.metrics:
        assert [metric.step for metric in client.get_metric_history(only.info.run_id, name)] == [1, 2], name


def test_words_of_the_command_line_are_switches() -> None:
    """Fire hands `--mlflow false` on as a string, which Python takes for true."""
    assert [switch(value) for value in (True, "true", "True", False, "false", "False")] == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match="'no' is neither true nor false"):
        switch("no")


@pytest.mark.parametrize("word", ["false", False])
def test_everything_can_be_switched_off(word: str | bool, cohort: Path, tmp_path: Path) -> None:
    """Nothing but the weights is then written."""
    off = dict.fromkeys(("tensorboard", "mlflow", "pictures", "resume", "amp"), word)
    output = run("training", tmp_path, cohort, epochs=1, **off)
    assert sorted(file.name for file in output.iterdir()) == ["checkpoint.pt", "encoder.pt"]


def test_options_as_they_are_typed(cohort: Path, tmp_path: Path) -> None:
    """A bare `--resume`, words, lists, None and nested keys, through Fire as `python -m monai.bundle` has it."""
    output = run("training", tmp_path, cohort, epochs=1)
    typed = "--resume --mlflow false --tensorboard False --epochs 2 --foreground_threshold None "
    typed += "--train#dataset#cache_rate 0.5 --crop_spacing [12.0,12.0,12.0]"
    files = ["--config_file", str(config_files(tmp_path)), "--dataset_dir", str(cohort), "--output_dir", str(output)]
    fire.Fire({"run": monai.bundle.run}, command=["run", "training", *files, *typed.split()])
    progress = torch.load(output / "checkpoint.pt", weights_only=True)["progress"]
    assert progress == {"iteration": 6, "epoch_length": 3}


def test_only_the_first_process_writes(cohort: Path, tmp_path: Path) -> None:
    """Handlers that write are absent in others; those that all processes need stay."""

    def names(rank: int) -> list[str]:
        parser = parsed(tmp_path, cohort, tensorboard=True, pictures=True, rank=rank)
        return [type(handler).__name__ for handler in parser.get_parsed_content("train#handlers")]

    first, second = names(0), names(1)
    writers = {"TensorBoardStatsHandler", "CropPictures", "StatsHandler"}
    assert writers <= set(first)
    assert [name for name in first if name not in writers] == second
