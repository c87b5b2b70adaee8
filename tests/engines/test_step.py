"""Precision, accumulation and the other options of a step: alone, and through the bundles' configs."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from anatomy_ssl.engines.prepare_batch import PrepareViews
from anatomy_ssl.engines.step import AccumulatedStep, AutocastInferer, split_batch
from anatomy_ssl.handlers.momentum import MomentumTeacher
from anatomy_ssl.handlers.training import ClipGradients, LossTerms, StopOnNonFiniteLoss
from anatomy_ssl.losses import PhysicalDistanceLoss, WeightedSumLoss
from anatomy_ssl.networks.momentum import StudentTeacher
from tests.handlers.trainers import Net, batches, two_terms


def trained(
    parts: int | None, network: nn.Module, handlers: tuple[Any, ...] = (), loss: Any = None, **settings: Any
) -> SupervisedTrainer:
    """Two epochs of three batches of five; `parts` of each, or MONAI's own step."""
    defaults: dict[str, Any] = {
        "device": torch.device("cpu"),
        "train_data_loader": batches(),
        "iteration_update": None if parts is None else AccumulatedStep(parts),
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        "prepare_batch": lambda batch, *_, **__: (batch["image"], {"goal": batch["goal"]}),
    }
    trainer = SupervisedTrainer(
        max_epochs=2,
        network=network,
        loss_function=loss or two_terms(),
        train_handlers=list(handlers),
        decollate=False,
        **{**defaults, **settings},
    )
    trainer.run()
    return trainer


def weights(network: nn.Module) -> torch.Tensor:
    """All of them as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_one_part_is_monais_step() -> None:
    """To the bit."""
    networks = Net(), Net()
    for network, parts in zip(networks, (None, 1)):
        trained(parts, network)
    assert torch.equal(*map(weights, networks))


@pytest.mark.parametrize("parts", [2, 3, 5, 9])
def test_parts_are_the_whole_batch_for_a_mean_over_samples(parts: int) -> None:
    """Also parts of different sizes, and more parts than samples; the logged terms and loss are the whole batch's."""
    networks, terms = (Net(), Net()), []
    for network, number in zip(networks, (None, parts)):
        loss = two_terms()
        engine = trained(number, network, (LossTerms(loss),), loss)
        terms.append({**engine.state.metrics, "last": float(engine.state.output["loss"])})
    torch.testing.assert_close(*map(weights, networks), rtol=1e-5, atol=1e-6)
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)
    assert {"loss", "loss_near", "loss_far"} < set(terms[0])


class Volumes(nn.Module):
    """Embeds crops by a linear map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """`(N, 1, 2, 2, 2)` -> embedding `(N, 3)`."""
        return {"embedding": self.linear(x.flatten(1))}


@pytest.mark.parametrize("volumes, parts", [(4, 2), (3, 2), (3, 5)])
def test_volumes_stay_whole_and_the_distance_loss_is_the_whole_batchs(volumes: int, parts: int) -> None:
    """Pairs within volumes, equally many in each: also where the parts differ in size."""
    rng = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.randn(4 * volumes, 1, 2, 2, 2, generator=rng),
        "position": torch.randn(4 * volumes, 3, generator=rng) * 100,
        "subject": [f"p{row // 4}" for row in range(4 * volumes)],
    }
    networks = Volumes(), Volumes()
    for network, number in zip(networks, (1, parts)):
        loss = WeightedSumLoss({"distance": PhysicalDistanceLoss()}, {"distance": ["embedding", "position", "scan"]})
        trained(
            None,
            network,
            loss=loss,
            train_data_loader=[batch],
            prepare_batch=PrepareViews(),
            **({} if number == 1 else {"iteration_update": AccumulatedStep(number, together=4)}),
        )
    torch.testing.assert_close(*map(weights, networks), rtol=1e-4, atol=1e-5)


def test_parts_of_a_batch() -> None:
    """In order, nothing lost, shares that add up to one; lists are cut as tensors are."""
    batch = {"x": torch.arange(14), "name": [str(n) for n in range(14)]}
    parts = list(split_batch(batch, 3, together=4))
    assert [len(part["x"]) for part, _ in parts] == [4, 4, 6]
    assert torch.equal(torch.cat([part["x"] for part, _ in parts]), batch["x"])
    assert [name for part, _ in parts for name in part["name"]] == batch["name"]
    assert sum(share for _, share in parts) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"different lengths.*'name': 13"):
        list(split_batch({**batch, "name": batch["name"][1:]}, 2))


@pytest.mark.parametrize("parts, together", [(0, 1), (2, 0)])
def test_senseless_parts_are_refused(parts: int, together: int) -> None:
    with pytest.raises(ValueError, match="accumulate must be 1 or more"):
        AccumulatedStep(parts, together)


def test_handlers_act_once_a_step() -> None:
    """Clipping, the teacher and the counters; the guard looks at every part."""
    calls: dict[str, int] = {}

    class Count(MomentumTeacher):
        def __call__(self, engine: Any) -> None:
            calls["teacher"] = calls.get("teacher", 0) + 1

    class Clip(ClipGradients):
        def __call__(self, engine: Any) -> None:
            calls["clip"] = calls.get("clip", 0) + 1
            super().__call__(engine)

    class Guard(StopOnNonFiniteLoss):
        def __call__(self, engine: Any) -> None:
            calls["guard"] = calls.get("guard", 0) + 1
            super().__call__(engine)

    class Student(Net):
        def forward(self, x: torch.Tensor, student: Any = None) -> dict[str, torch.Tensor]:
            return super().forward(x)

    pair, loss = StudentTeacher(Student()), two_terms()
    optimizer = torch.optim.SGD(pair.student.parameters(), lr=0.1)
    handlers = (Count(pair), Clip(pair.student.parameters(), 0.1), Guard(loss))
    engine = trained(2, pair, handlers, loss, optimizer=optimizer)
    assert calls == {"teacher": 6, "clip": 6, "guard": 12} and engine.state.iteration == 6


def test_clipping_is_of_the_whole_gradient() -> None:
    """Parts clipped one by one would give another direction."""
    networks = Net(), Net()
    for network, parts in zip(networks, (None, 2)):
        trained(parts, network, (ClipGradients(network.parameters(), 0.05),))
    torch.testing.assert_close(*map(weights, networks), rtol=1e-5, atol=1e-6)


def test_scaled_gradients_are_unscaled_once() -> None:
    """As MONAI's `amp` has it; with a factor of two, on a CPU, everything is exact."""

    class Scale:
        def attach(self, engine: Any) -> None:
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            engine.add_event_handler(Events.STARTED, lambda e: setattr(e, "scaler", scaler))

    networks = Net(), Net()
    for network, scaling in zip(networks, ((), (Scale(),))):
        trained(2, network, (*scaling, ClipGradients(network.parameters(), 0.05)))
    torch.testing.assert_close(*map(weights, networks), rtol=1e-6, atol=1e-7)


def process(rank: int, port: int, folder: str) -> None:
    """One of two, with its half of every batch."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    half = slice(2 * rank, 2 * rank + 2)
    data = [{name: value[half] for name, value in batch.items()} for batch in batches()]
    network = Net()
    trained(2, nn.parallel.DistributedDataParallel(network), train_data_loader=data)
    torch.save(weights(network), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_add_their_parts_up(tmp_path: Path) -> None:
    """Four samples in two processes of two parts each are one batch of four."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, str(tmp_path)), nprocs=2)
    network = Net()
    trained(None, network, train_data_loader=[{k: v[:4] for k, v in batch.items()} for batch in batches()])
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), weights(network), rtol=1e-5, atol=1e-6)


class Nested(nn.Module):
    """Outputs in containers, made by a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        """`(N, 4)` -> tensors `(N, 3)`."""
        y = self.linear(x)
        self.dtype = y.dtype
        return {"a": y, "list": [y, (y, "word")], "rows": torch.arange(3)}


def test_bfloat16_inside_float32_outside(caplog: pytest.LogCaptureFixture) -> None:
    """With a warning on CPUs, in one line; integers and other things are left alone."""
    network, x = Nested(), torch.randn(2, 4)
    outputs = AutocastInferer("bfloat16")(x, network)
    assert network.dtype == torch.bfloat16
    assert outputs["a"].dtype == outputs["list"][0].dtype == outputs["list"][1][0].dtype == torch.float32
    assert outputs["list"][1][1] == "word" and outputs["rows"].dtype == torch.int64
    assert len(caplog.records) == 1 and "on a CPU" in caplog.text
    caplog.clear()
    plain = AutocastInferer("float32")(x, network)
    assert network.dtype == torch.float32 and torch.equal(plain["a"], network(x)["a"]) and not caplog.records
    torch.testing.assert_close(outputs["a"], plain["a"], rtol=0.05, atol=0.05)


def test_the_loss_is_outside_of_autocast() -> None:
    """Matrix products of the loss are float32, and so are the gradients of the weights."""
    seen = []

    def loss(pred: dict[str, torch.Tensor], goal: dict[str, torch.Tensor]) -> torch.Tensor:
        product = pred["embedding"] @ goal["goal"].T
        seen.append(product.dtype)
        return product.square().mean()

    network = Net()
    trained(None, network, (), loss, inferer=AutocastInferer("bfloat16"))
    assert set(seen) == {torch.float32} and network.linear.weight.grad is not None
    assert network.linear.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("precision, message", [("half", "none of float32, bfloat16, float16"), ("float16", "CUDA")])
def test_other_precisions_are_refused(precision: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutocastInferer(precision, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_on_cuda(precision: str) -> None:
    """float16 with MONAI's gradient scaling, in parts."""
    network = Net().cuda()
    before = weights(network)
    trained(
        2,
        network,
        (ClipGradients(network.parameters(), 1.0),),
        device=torch.device("cuda"),
        prepare_batch=lambda batch, device, *_, **__: (batch["image"].cuda(), {"goal": batch["goal"].cuda()}),
        inferer=AutocastInferer(precision, "cuda"),
        amp=precision == "float16",
    )
    assert torch.isfinite(weights(network)).all() and not torch.equal(before, weights(network))
