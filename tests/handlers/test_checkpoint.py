"""What a checkpoint holds and when it refuses; whole runs are stopped and resumed in tests/bundles/test_resume.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

import anatomy_ssl
from anatomy_ssl.data.sampler import EpochSampler
from anatomy_ssl.handlers import checkpoint
from anatomy_ssl.handlers.checkpoint import ExportEncoder, TrainingCheckpoint
from anatomy_ssl.handlers.training import StopOnNonFiniteLoss
from anatomy_ssl.weights import load_pretrained, read_state
from tests.handlers.trainers import Net, Spoilt, batches, trainer, two_terms


def run(folder: Path, network: torch.nn.Module | None = None, epochs: int = 2, **options: Any) -> torch.nn.Module:
    """Train with a checkpoint in `folder`; returns the network."""
    network = network or Net()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    save_dict = {"model": network, "optimizer": optimizer, "lr_scheduler": schedule}
    handler = TrainingCheckpoint(str(folder), save_dict, **options)
    work = trainer([], network, optimizer=optimizer, epochs=epochs)
    work.add_event_handler(Events.EPOCH_COMPLETED, lambda _: schedule.step())
    handler.attach(work)
    work.run()
    return network


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Bit-equal weights."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def test_resume_restores_optimiser_and_schedule(tmp_path: Path) -> None:
    """Two epochs and two more come to where four come; each part is needed for it."""
    whole = run(tmp_path / "whole", epochs=4)
    run(tmp_path / "parts", epochs=2)
    assert same(run(tmp_path / "parts", epochs=4, resume=True), whole)
    for part in ("optimizer", "lr_scheduler"):
        run(tmp_path / part, epochs=2)
        saved = torch.load(tmp_path / part / "checkpoint.pt", weights_only=True)
        saved[part] = torch.load(_fresh(tmp_path / f"fresh_{part}"), weights_only=True)[part]
        torch.save(saved, tmp_path / part / "checkpoint.pt")
        assert not same(run(tmp_path / part, epochs=4, resume=True), whole)


def _fresh(folder: Path) -> Path:
    """A checkpoint of before the first step."""
    network = Net()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    handler = TrainingCheckpoint(str(folder), {"model": network, "optimizer": optimizer, "lr_scheduler": schedule})
    handler.save(trainer([], network, optimizer=optimizer))
    return handler.path


def test_a_wrapped_network_is_saved_under_its_own_names(tmp_path: Path) -> None:
    """Checkpoints of one and of several processes are alike."""
    network = Net()
    TrainingCheckpoint(str(tmp_path), {"model": torch.nn.DataParallel(network)}).save(trainer([], network))
    assert list(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]) == list(network.state_dict())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_the_checkpoint_before_stays_whole_when_saving_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no half file is left beside it."""
    run(tmp_path, epochs=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(obj: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(type(error)):
        run(tmp_path, epochs=2, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("missing", ["model", "optimizer", "progress"])
def test_a_checkpoint_without_a_part_is_refused(missing: str, tmp_path: Path) -> None:
    """Nothing is resumed in part."""
    run(tmp_path, epochs=1)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del saved[missing]
    torch.save(saved, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=rf"checkpoint\.pt has no {missing}: it is not a checkpoint of this"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("word", "error"),
    [
        (True, FileNotFoundError),
        ("true", FileNotFoundError),
        ("True", FileNotFoundError),
        ("auto", None),
        ("Auto", None),
        (False, None),
        ("false", None),
        (1, ValueError),
        ("yes", ValueError),
        (None, ValueError),
    ],
)
def test_words_for_resume_without_a_checkpoint(word: Any, error: type[Exception] | None, tmp_path: Path) -> None:
    """Values as YAML and as the command line give them."""
    if error:
        with pytest.raises(error):
            TrainingCheckpoint(str(tmp_path), {}, resume=word)
    else:
        run(tmp_path, resume=word)


@pytest.mark.parametrize("word", [False, "false", "False"])
def test_an_earlier_run_is_not_written_over(word: Any, tmp_path: Path) -> None:
    """The remedy is in the message."""
    run(tmp_path)
    with pytest.raises(FileExistsError, match="--resume true"):
        run(tmp_path, resume=word)
    for word in ("true", "auto"):
        assert same(run(tmp_path, resume=word, epochs=3), run(tmp_path / word, epochs=3))


def test_the_sampler_skips_what_the_stopped_epoch_had_seen(tmp_path: Path) -> None:
    """Iterations times the batch size, of the epoch in which the run was stopped."""
    network = Net()
    stopped = trainer([], network)
    TrainingCheckpoint(str(tmp_path), {"model": network}).attach(stopped)
    stopped.add_event_handler(Events.ITERATION_STARTED(once=5), lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        stopped.run()
    assert left.value.code == 143
    sampler = EpochSampler(range(12))
    handler = TrainingCheckpoint(str(tmp_path), {"model": Net()}, sampler, batch_size=4, resume=True)
    resumed = trainer([])
    seen: list[tuple[int, int, int]] = []
    handler.attach(resumed)
    resumed.add_event_handler(
        Events.STARTED, lambda engine: seen.append((engine.state.epoch, engine.state.iteration, sampler.skip))
    )
    resumed.run()
    assert seen == [(1, 5, 8)]


@pytest.mark.parametrize(("epoch", "code"), [(2, 143), (4, None)])
def test_epochs_of_one_iteration_can_be_stopped(epoch: int, code: int | None, tmp_path: Path) -> None:
    """At the epoch's end, where every iteration is the last one of its epoch; a run that is done is complete."""
    work = trainer([], Net(), epochs=4, data=batches(1))
    TrainingCheckpoint(str(tmp_path), {"model": Net()}, interval=10).attach(work)
    work.add_event_handler(Events.ITERATION_STARTED(once=epoch), lambda _: signal.raise_signal(signal.SIGTERM))
    if code is None:
        work.run()
    else:
        with pytest.raises(SystemExit) as left:
            work.run()
        assert left.value.code == code
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["progress"] == {"iteration": epoch, "epoch_length": 1}


def test_workers_are_not_in_the_group_that_gets_signals() -> None:
    """A signal to the run's process group then reaches the main process only, which can save."""
    iterator: Any = iter(DataLoader(range(8), num_workers=1, worker_init_fn=checkpoint.own_process_group))
    next(iterator)
    assert os.getpgid(iterator._workers[0].pid) != os.getpgrp()
    assert len(list(iterator)) == 7


def test_sigterm_is_as_before_after_a_run(tmp_path: Path) -> None:
    """The process can be ended again, by whatever handled the signal before."""
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint and encoder."""
    monkeypatch.setattr(checkpoint, "process_rank", lambda: 1)
    run(tmp_path)
    engine = Engine(lambda engine, batch: None)
    ExportEncoder(Net(), str(tmp_path / "encoder.pt"), {})(engine)
    assert not any(tmp_path.iterdir())


def test_a_stop_by_a_bad_loss_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """Of the epoch before."""
    network, loss = Net(), two_terms(Spoilt(5))
    save = TrainingCheckpoint(str(tmp_path), {"model": network})
    with pytest.raises(FloatingPointError):
        trainer([StopOnNonFiniteLoss(loss), save], network, loss).run()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["progress"]["iteration"] == 3
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_the_exported_encoder_has_its_own_names_and_a_record(tmp_path: Path) -> None:
    """Written when the run is complete, and readable by the package's loader."""
    network, path = Net(), tmp_path / "encoder.pt"
    export = ExportEncoder(network.linear, str(path), {"method": "test", "seed": 0})
    work = trainer([export], network)
    work.add_event_handler(Events.EPOCH_COMPLETED, lambda _: _absent(path))
    work.run()
    assert list(read_state(path)) == ["weight", "bias"]
    other = torch.nn.Linear(4, 3)
    assert load_pretrained(other, path).share == 1
    assert same(other, network.linear)
    record = torch.load(path, weights_only=True)["provenance"]
    versions = record.pop("versions")
    assert record == {"method": "test", "seed": 0, "epochs": 2, "iterations": 2 * len(batches())}
    assert versions == {"anatomy_ssl": anatomy_ssl.__version__, "monai": monai.__version__, "torch": torch.__version__}


def test_the_checkpoint_has_the_record_of_the_exported_encoder(tmp_path: Path) -> None:
    """Word for word, so that an export of the checkpoint later says the same; resuming goes on counting."""
    given = {"method": "test", "crop_spacing": None}
    run(tmp_path, epochs=1, provenance=given)
    network = Net()
    save = TrainingCheckpoint(str(tmp_path), {"model": network}, resume=True, provenance=given)
    trainer([save, ExportEncoder(network, str(tmp_path / "e.pt"), given)], network, epochs=3).run()
    record = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["provenance"]
    assert record == torch.load(tmp_path / "e.pt", weights_only=True)["provenance"]
    assert {name: record[name] for name in given} == given
    assert (record["epochs"], record["iterations"]) == (3, 3 * len(batches()))


def test_epochs_in_the_record_are_whole_ones(tmp_path: Path) -> None:
    """A run that is stopped in its second epoch has done one."""
    stopped = trainer([])
    TrainingCheckpoint(str(tmp_path), {"model": Net()}, provenance={}).attach(stopped)
    stopped.add_event_handler(Events.ITERATION_STARTED(once=5), lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        stopped.run()
    record = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["provenance"]
    assert (record["epochs"], record["iterations"]) == (1, 5)


def test_without_a_record_the_checkpoint_has_none(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    assert "provenance" not in torch.load(tmp_path / "checkpoint.pt", weights_only=True)


def _absent(path: Path) -> None:
    assert not path.exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    """With one line, not with torch's account of the bytes."""
    (tmp_path / "checkpoint.pt").write_bytes(b"half a checkpoint")
    handler = TrainingCheckpoint(str(tmp_path), {"model": torch.nn.Linear(1, 1)}, resume=True)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        handler.load(None)
