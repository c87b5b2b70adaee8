"""Rates by the step or epoch alone: the curves, their ends, and a resumed run."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from anatomy_ssl.engines.parameters import decayed_parameters
from anatomy_ssl.handlers.schedules import LearningRate, TeacherTemperature, WeightDecay
from anatomy_ssl.losses.distillation import DistillationLoss
from anatomy_ssl.losses.weighted_sum import WeightedSumLoss
from tests.handlers.trainers import Net, trainer

EPOCHS, LENGTH = 10, 3


def optimizer(*peaks: float) -> torch.optim.Optimizer:
    """With a group for each rate, the last without weight decay."""
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": peak, "weight_decay": 0.1} for peak in peaks]
    groups[-1]["weight_decay"] = 0.0
    return torch.optim.AdamW(groups)


def run(handler: Any, read: Any, start: int = 0, epochs: int = EPOCHS) -> list[Any]:
    """What `read` gives in each iteration, of a run that is resumed after `start` iterations."""
    found: list[Any] = []
    engine = Engine(lambda engine, batch: found.append(read()))
    engine.state.max_epochs = epochs  # as MONAI's trainers have it before handlers are attached
    handler.attach(engine)

    @engine.on(Events.STARTED)
    def resume(engine: Engine) -> None:
        engine.state.iteration, engine.state.epoch = start, start // LENGTH

    engine.run(range(LENGTH), max_epochs=epochs)
    return found


def rates(*peaks: float, start: int = 0, epochs: int = EPOCHS, **settings: float) -> list[list[float]]:
    """Learning rates of every group in every iteration."""
    opt = optimizer(*peaks)
    handler = LearningRate(opt, **settings)
    return run(handler, lambda: [group["lr"] for group in opt.param_groups], start, epochs)


def test_learning_rate_rises_in_a_line_and_falls_by_half_a_cosine() -> None:
    """Of 30 steps, 6 up; the last is the lowest; groups keep their ratio to each other but for the lowest rate."""
    found = rates(0.8, 0.2, warmup_epochs=2, min_lr=0.01)
    for group, peak in enumerate((0.8, 0.2)):
        expected = [peak * step / 6 for step in range(1, 7)]
        expected += [0.01 + (peak - 0.01) * (1 + math.cos(math.pi * step / 24)) / 2 for step in range(1, 25)]
        assert [rate[group] for rate in found] == pytest.approx(expected)
    assert found[-1] == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize("peak", [1e-7, 1e-6, 0.5])
@pytest.mark.parametrize("warmup", [0, 0.5, 5, 9])
def test_learning_rate_is_never_above_the_peak_and_never_rises_again(peak: float, warmup: float) -> None:
    """Also where the peak is below the lowest rate, as of a small batch."""
    found = [rate for (rate,) in rates(peak, warmup_epochs=warmup, min_lr=1e-6)]
    top = found.index(max(found))
    assert max(found) <= peak
    assert max(found) >= 0.98 * peak
    assert found[:top] == sorted(found[:top])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert found[-1] == pytest.approx(min(peak, 1e-6))


def test_a_peak_below_the_lowest_rate_is_told(caplog: pytest.LogCaptureFixture) -> None:
    LearningRate(optimizer(1e-3), min_lr=1e-6)
    assert not caplog.records
    LearningRate(optimizer(1e-7), min_lr=1e-6)
    assert "at most min_lr 1e-06" in caplog.text


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_warm_up_as_long_as_the_run_is_refused(epochs: int, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=f"leaves nothing of a run of {epochs}: lower warmup_epochs"):
        rates(0.1, warmup_epochs=5, epochs=epochs)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_monais_trainer_knows_its_length_when_handlers_are_attached() -> None:
    network = Net()
    opt = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(ValueError, match="a run of 2: "):
        trainer([LearningRate(opt, 2)], network, optimizer=opt)
    engine = trainer([LearningRate(opt, 1, 0.02), WeightDecay(opt)], network, optimizer=opt)
    engine.run()
    assert engine.state.metrics["learning_rate"] == opt.param_groups[0]["lr"] == pytest.approx(0.02)
    assert engine.state.metrics["weight_decay"] == pytest.approx(0.4)


def test_weight_decay_goes_from_start_to_end_and_spares_what_had_none() -> None:
    opt = optimizer(0.1, 0.1)
    found = run(WeightDecay(opt), lambda: [group["weight_decay"] for group in opt.param_groups])
    assert [rate[0] for rate in found] == pytest.approx(
        [0.04 + 0.36 * (1 - math.cos(math.pi * step / 29)) / 2 for step in range(30)]
    )
    assert (found[0][0], found[-1][0]) == pytest.approx((0.04, 0.4))
    assert all(rate[1] == 0 for rate in found)


def test_weight_decay_reaches_no_bias() -> None:
    """With the groups of `decayed_parameters`: without gradients, only the matrix shrinks."""
    network = Net()
    opt = torch.optim.AdamW(decayed_parameters(network, 0.04), lr=0.1)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run(WeightDecay(opt), opt.step)
    assert torch.equal(network.linear.bias, before["linear.bias"])
    assert float(network.linear.weight.detach().norm()) < 0.6 * float(before["linear.weight"].norm())


def two_losses() -> WeightedSumLoss:
    """Both of Alice's distillation losses and another."""
    terms = {"a": DistillationLoss(3), "b": DistillationLoss(3, teacher_temperature=0.04), "c": nn.MSELoss()}
    return WeightedSumLoss(terms, {name: ["x"] for name in terms})


@pytest.mark.parametrize(("epochs", "expected"), [(5, [0.0, 0.25, 0.5, 0.75, 1, 1]), (1, [1] * 6), (0, [1] * 6)])
def test_temperature_warms_up_by_epochs(epochs: int, expected: list[float]) -> None:
    """Each loss to its own; the same for all steps of an epoch."""
    loss = two_losses()
    a, b = loss.terms["a"], loss.terms["b"]
    found = run(TeacherTemperature(loss, 0.008, epochs), lambda: (a.teacher_temperature, b.teacher_temperature))
    assert found[::LENGTH] == found[2::LENGTH]
    assert [x for x, _ in found[::LENGTH]][:6] == pytest.approx([0.008 + 0.002 * share for share in expected])
    assert [x for _, x in found[::LENGTH]][:6] == pytest.approx([0.008 + 0.032 * share for share in expected])


@pytest.mark.parametrize("start", [3, 4, 17])
def test_a_resumed_run_goes_on_with_the_rates_of_one_that_was_not_stopped(start: int) -> None:
    """New objects, which know the iteration alone."""

    def curves(start: int) -> list[Any]:
        found = []
        opt, loss = optimizer(0.3, 0.1), two_losses()
        found.append(run(LearningRate(opt, 2), lambda: [group["lr"] for group in opt.param_groups], start))
        found.append(run(WeightDecay(opt), lambda: opt.param_groups[0]["weight_decay"], start))
        found.append(run(TeacherTemperature(loss, 0.008, 6), lambda: loss.terms["a"].teacher_temperature, start))
        return found

    for whole, resumed in zip(curves(0), curves(start - start % LENGTH)):
        assert resumed == whole[start - start % LENGTH :]


def test_a_resumed_optimizer_keeps_the_peak() -> None:
    """Its state holds the rate of the step at which it was saved."""
    opt = optimizer(0.3)
    first = run(LearningRate(opt, 2), lambda: opt.param_groups[0]["lr"])
    again = optimizer(0.3)
    handler = LearningRate(again, 2)
    again.load_state_dict(opt.state_dict())
    assert run(handler, lambda: again.param_groups[0]["lr"]) == first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearningRate(optimizer(0.1), -1), "must not be negative"),
        (lambda: WeightDecay(optimizer(0.1), -0.1), "cannot be negative"),
        (lambda: TeacherTemperature(DistillationLoss(3), 0), "start over 0"),
        (lambda: TeacherTemperature(nn.MSELoss()), "MSELoss holds no DistillationLoss"),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
