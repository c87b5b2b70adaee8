"""Seeds, clipping, guards and curves."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from anatomy_ssl.handlers import training
from anatomy_ssl.handlers.training import (
    ClipGradients,
    CollapseAlarm,
    LossTerms,
    Progress,
    SeedIterations,
    StopOnNonFiniteLoss,
)
from tests.handlers.trainers import Net, Spoilt, batches, trainer, two_terms


class AtIteration:
    """Calls a function when an iteration starts."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def attach(self, engine: Engine) -> None:
        """Register."""
        engine.add_event_handler(Events.ITERATION_STARTED, self.function)


def state(network: nn.Module) -> list[torch.Tensor]:
    """Copies of the weights."""
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value: float) -> None:
    """The message says which term, where in the run, and where the last checkpoint is."""
    network, loss = Net(), two_terms(Spoilt(5, value))
    before: dict[int, list[torch.Tensor]] = {}
    remember = AtIteration(lambda engine: before.update({engine.state.iteration: state(network)}))
    run = trainer([remember, StopOnNonFiniteLoss(loss, "runs/a")], network, loss)
    with pytest.raises(FloatingPointError) as caught:
        run.run()
    assert max(before) == 5
    assert not torch.equal(before[4][0], before[5][0])
    assert all(torch.equal(a, b) for a, b in zip(before[5], state(network)))
    message = str(caught.value)
    assert "epoch 2, iteration 5" in message
    assert f"near = {value:g}" in message
    assert f"far = {float(loss.values['far']):g}" in message
    assert "runs/a" in message


def test_a_loss_without_named_terms_is_guarded_too() -> None:
    """Fine-tuning's losses are torch's or MONAI's own."""

    class Broken(torch.nn.Module):
        def forward(self, pred: dict[str, torch.Tensor], goal: dict[str, torch.Tensor]) -> torch.Tensor:
            return pred["embedding"].sum() * float("inf")

    loss = Broken()
    with pytest.raises(FloatingPointError, match=r"iteration 1 \(loss = "):
        trainer([StopOnNonFiniteLoss(loss)], Net(), loss).run()


def test_a_finite_loss_is_left_alone() -> None:
    """The guard changes no run."""
    loss = two_terms()
    networks = Net(), Net()
    trainer([], networks[0], loss).run()
    trainer([StopOnNonFiniteLoss(loss)], networks[1], loss).run()
    assert all(torch.equal(a, b) for a, b in zip(state(networks[0]), state(networks[1])))


@pytest.mark.parametrize("max_norm", [None, 0.1, 1e6])
def test_gradients_are_clipped_to_the_norm_and_keep_their_direction(max_norm: float | None) -> None:
    """A step of plain SGD with rate 1 is the gradient."""
    steps = []
    for bound in (None, max_norm):
        network = Net()
        before = state(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        clip = ClipGradients(network.parameters(), bound)
        trainer([clip], network, optimizer=optimizer, epochs=1, data=batches(1)).run()
        steps.append(torch.cat([(a - b).flatten() for a, b in zip(before, state(network))]))
    whole, clipped = steps
    assert clipped.norm() == pytest.approx(min(float(whole.norm()), max_norm or 1e9), rel=1e-4)
    assert torch.cosine_similarity(whole, clipped, dim=0) > 0.9999


def test_each_gradient_is_clipped_by_itself() -> None:
    """Small ones stay, also beside large ones; what has no gradient is left out."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2), (1,), (6,))]
    rng = torch.Generator().manual_seed(0)
    for parameter, norm in zip(parameters[:4], (0.2, 1.0, 30.0, 0.0)):
        gradient = torch.randn(parameter.shape, generator=rng)
        parameter.grad = norm * gradient / gradient.norm()
    before = [p.grad.clone() for p in parameters[:4]]  # type: ignore[union-attr]
    ClipGradients(parameters, 3.0, each=True)(SimpleNamespace(scaler=None))
    for parameter, old in zip(parameters[:4], before):
        torch.testing.assert_close(parameter.grad, old * min(1.0, 3 / max(1e-9, float(old.norm()))))
    assert parameters[4].grad is None


@pytest.mark.parametrize("each", [False, True])
def test_scaled_gradients_are_clipped_in_their_true_size(each: bool) -> None:
    """Under gradient scaling they are made small again first, and once only."""
    network = nn.Linear(3, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    loss = 1e-2 * network(torch.ones(1, 3)).sum()
    true = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    scaler.scale(loss).backward()
    before = state(network)
    ClipGradients(network.parameters(), 0.5, each)(SimpleNamespace(scaler=scaler, optimizer=optimizer))
    scaler.step(optimizer)
    for old, new, gradient in zip(before, state(network), true):
        assert torch.allclose(old - new, gradient, atol=1e-7)


@pytest.mark.parametrize("each", [False, True])
def test_gradients_that_are_not_finite_stop_before_the_weights_change(each: bool) -> None:
    """A finite loss may have them; a scaler skips such steps by itself."""
    network = nn.Linear(2, 1)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    engine = SimpleNamespace(scaler=None, state=SimpleNamespace(epoch=3, iteration=7))
    with pytest.raises(FloatingPointError, match="epoch 3, iteration 7"):
        ClipGradients(network.parameters(), 1.0, each)(engine)


def test_curves_show_the_mean_of_each_term_over_the_epoch() -> None:
    """Of all iterations, afresh in each epoch."""
    loss = two_terms()
    values: list[dict[str, float]] = []
    run = trainer([LossTerms(loss)], loss=loss)
    run.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: values.append({k: float(v) for k, v in loss.values.items()})
    )
    means: list[dict[str, float]] = []
    run.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: means.append(dict(engine.state.metrics)))
    run.run()
    assert len(values) == 6
    for epoch, metrics in enumerate(means):
        part = values[3 * epoch : 3 * epoch + 3]
        assert set(metrics) == {"loss", "loss_near", "loss_far"}
        for name, key in (("loss", "loss"), ("loss_near", "near"), ("loss_far", "far")):
            assert metrics[name] == pytest.approx(np.mean([v[key] for v in part]))
        assert metrics["loss"] == pytest.approx(metrics["loss_near"] + 0.5 * metrics["loss_far"])


def draws(start: int, seed: int = 0) -> dict[int, tuple[float, float, float]]:
    """What three generators give in each iteration of a run that goes on after iteration `start` of 6."""
    drawn: dict[int, tuple[float, float, float]] = {}

    def draw(engine: Engine, batch: Any) -> None:
        drawn[engine.state.iteration] = (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002

    engine = Engine(draw)
    SeedIterations(seed).attach(engine)

    @engine.on(Events.STARTED)
    def resume(engine: Engine) -> None:
        engine.state.iteration, engine.state.epoch = start, start // 3

    torch.rand(7), random.random(), np.random.rand()  # noqa: NPY002
    engine.run([0, 1, 2], max_epochs=2)
    return drawn


def test_a_resumed_run_draws_the_numbers_that_it_would_have_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of seed, iteration and process; all three matter, for Python, NumPy and torch."""
    whole = draws(0)
    assert sorted(whole) == [1, 2, 3, 4, 5, 6]
    assert draws(3) == {i: whole[i] for i in (4, 5, 6)}
    other_seed = draws(0, seed=1)
    monkeypatch.setattr(training, "process_rank", lambda: 1)
    other_rank = draws(0)
    drawn = [values for run in (whole, other_seed, other_rank) for values in run.values()]
    for generator in range(3):
        assert len({values[generator] for values in drawn}) == 18


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ({"rankme": 3.0, "spread": 1e-4}, []),
        ({"rankme": 2.99, "spread": 1.0}, ["rankme"]),
        ({"rankme": 10.0, "spread": 0.99e-4}, ["spread"]),
        ({"rankme": 1.0, "spread": 0.0}, ["rankme", "spread"]),
        ({"rankme": float("nan"), "spread": 1.0}, ["rankme"]),
        ({"rankme": 10.0, "spread": float("inf")}, ["spread"]),
        ({"loss": 0.0}, []),
    ],
)
def test_collapse_is_told_exactly_under_the_bounds(metrics: dict[str, float], named: list[str], caplog) -> None:
    """A warning with the metric and its value, and a flag for the curves."""
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: engine.state.metrics.update(metrics))
    CollapseAlarm().attach(engine)
    engine.run([0])
    assert engine.state.metrics["collapsed"] == bool(named)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == bool(named)
    assert [name for name in ("rankme", "spread") if any(f"{name} = " in line for line in warnings)] == named


def test_no_progress_bar_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Logs of a cluster job stay readable."""
    trainer([Progress()]).run()
    assert "epoch" not in capfd.readouterr().err
