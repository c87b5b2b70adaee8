"""StudentTeacher and MomentumTeacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from anatomy_ssl.handlers.momentum import MomentumTeacher
from anatomy_ssl.networks.momentum import StudentTeacher


class Net(nn.Module):
    """Named outputs, batch statistics, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor, student: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """`x` and, for students, its sum; for teachers, the student's difference."""
        z = self.body(x)
        return {"z": z, "sum": z.sum()} if student is None else {"z": z, "apart": student["z"] - z}


def engine(iteration: int, epochs: int = 4, length: int = 25) -> SimpleNamespace:
    """What the handler reads of a trainer."""
    return SimpleNamespace(state=SimpleNamespace(iteration=iteration, max_epochs=epochs, epoch_length=length))


def test_teacher_is_a_copy_that_never_trains() -> None:
    network = StudentTeacher(Net())
    network.train()
    x = torch.randn(5, 3)
    outputs = network(x)
    assert outputs.keys() == {"z", "sum", "teacher_z", "teacher_apart"}
    assert torch.equal(outputs["teacher_apart"], outputs["z"] - outputs["teacher_z"])
    assert network.student.training
    assert not any(module.training for module in network.teacher.modules())
    assert torch.equal(outputs["teacher_z"], network(x)["teacher_z"])  # no dropout, no moving statistics
    assert not outputs["teacher_z"].requires_grad
    assert not outputs["teacher_apart"].requires_grad
    outputs["sum"].backward()
    assert all(p.grad is None and not p.requires_grad for p in network.teacher.parameters())


def test_average_equals_the_formula() -> None:
    """Against a loop in double precision over 100 steps with moving students."""
    torch.manual_seed(0)
    network, handler_steps = StudentTeacher(Net()), 100
    handler = MomentumTeacher(network, 0.9)
    expected = [p.double().clone() for p in network.teacher.parameters()]
    for step in range(1, handler_steps + 1):
        with torch.no_grad():
            for parameter in network.student.parameters():
                parameter.add_(torch.randn_like(parameter))
        handler(engine(step))
        m = 0.9 + 0.1 * (1 - math.cos(math.pi * (step - 1) / 99)) / 2
        expected = [m * e + (1 - m) * p.double() for e, p in zip(expected, network.student.parameters())]
    for found, value in zip(network.teacher.parameters(), expected):
        torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=1e-5)


def test_momentum_rises_from_first_to_last_step() -> None:
    handler = MomentumTeacher(StudentTeacher(Net()), 0.99, 0.999)
    values = [handler.at(step, 100) for step in range(1, 101)]
    assert values[0] == pytest.approx(0.99)
    assert values[-1] == pytest.approx(0.999)
    assert values == sorted(values)


def test_buffers_are_the_students() -> None:
    network = StudentTeacher(Net())
    network.student.train()
    network.student(torch.randn(6, 3))
    MomentumTeacher(network)(engine(1))
    assert torch.equal(network.teacher.body[1].running_mean, network.student.body[1].running_mean)
    assert int(network.teacher.body[1].num_batches_tracked) == 1


def test_shared_parts_are_the_students_without_averaging() -> None:
    """Through steps, averages, checkpoints and casts; modes stay apart, and the rest is averaged."""
    torch.manual_seed(0)
    network = StudentTeacher(Net(), shared=["body.1"]).train()
    optimizer = torch.optim.SGD(network.student.parameters(), 0.1)
    network(torch.randn(5, 3))["z"].square().sum().backward()
    optimizer.step()
    MomentumTeacher(network, 0.9)(engine(1))
    student, teacher = network.student.body, network.teacher.body
    assert torch.equal(teacher[1].weight, student[1].weight)
    assert not torch.equal(student[1].weight, torch.ones(4))
    assert not torch.equal(teacher[0].weight, student[0].weight)
    assert (student[1].training, teacher[1].training) == (True, False)
    other = StudentTeacher(Net(), shared=["body.1"])
    other.load_state_dict(network.state_dict())
    other.double()
    with torch.no_grad():
        other.student.body[1].weight.mul_(2)
    torch.testing.assert_close(other.teacher.body[1].weight, 2 * student[1].weight.double())


def test_a_shared_part_that_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="Net has no part 'casa'"):
        StudentTeacher(Net(), shared=["casa"])


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_refuses(momentum: float) -> None:
    with pytest.raises(ValueError, match="within 0 to 1"):
        MomentumTeacher(StudentTeacher(Net()), momentum)
