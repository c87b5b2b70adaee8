"""GridConsistencyNetwork: heads by name, one pass for both views, a teacher that does no more than is used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anatomy_ssl.networks.grid_consistency import GridConsistencyNetwork
from anatomy_ssl.networks.momentum import StudentTeacher
from anatomy_ssl.networks.swin import SwinEncoder


def network(dims: int = 2, **changes: int | bool) -> GridConsistencyNetwork:
    """Of a small Swin with cells of 4 voxels; 3 x 2 (x 2) cells."""
    encoder = SwinEncoder(dims, 1, 8, (2, 2), (2, 4), window_size=2, patch_size=2)
    heads = {"global_features": 10, "local_features": 6, **changes}
    return GridConsistencyNetwork(encoder, 16, (3, 2, 2)[:dims], 4, **heads)  # type: ignore[arg-type]


def views(dims: int = 2, batch: int = 5) -> list[torch.Tensor]:
    """Two of them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 1, *(12, 8, 8)[:dims], generator=generator) for _ in range(2)]


@pytest.mark.parametrize(("dims", "cells"), [(2, 6), (3, 12)])
def test_outputs(dims: int, cells: int) -> None:
    outputs = network(dims)(views(dims))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "global_1": (5, 10),
        "global_2": (5, 10),
        "local_1": (5, cells, 6),
        "local_2": (5, cells, 6),
        "order": (5, cells, cells),
        "restored": (5, 1, *(12, 8, 8)[:dims]),
        "tokens_1": (5, cells, 16),
        "tokens_2": (5, cells, 16),
    }


def test_views_are_encoded_alike() -> None:
    """Swapping the views swaps the outputs; a view does not see the other."""
    net = network().eval()
    a, b = views()
    one, other = net([a, b]), net([b, a])
    for name in ("global", "local", "tokens"):
        torch.testing.assert_close(one[f"{name}_1"], other[f"{name}_2"])


def test_a_cell_is_restored_at_its_own_place() -> None:
    """What the head writes for cell j lands in the box of cell j, rows before columns."""
    net = network().eval()
    head = net.restoration_head
    assert head is not None
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.arange(16.0))  # the pattern within a cell
    restored = net(views())["restored"][0, 0]
    pattern = torch.arange(16.0).reshape(4, 4)
    for row in range(3):
        for column in range(2):
            assert torch.equal(restored[4 * row : 4 * row + 4, 4 * column : 4 * column + 4], pattern)


def test_the_teacher_gives_embeddings_alone() -> None:
    pair = StudentTeacher(network())
    ran: list[str] = []
    for name in ("order_head", "restoration_head"):
        getattr(pair.teacher, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    outputs = pair(views())
    assert not ran
    given = {name for name in outputs if name.startswith("teacher_")}
    assert given == {"teacher_global_1", "teacher_global_2", "teacher_local_1", "teacher_local_2"}


def test_heads_that_no_loss_needs_are_left_out() -> None:
    """POPAR: order and restoration alone; every parameter still gets a gradient."""
    net = network(global_features=0, local_features=0)
    outputs = net(views())
    assert outputs.keys() == {"order", "restored", "tokens_1", "tokens_2"}
    (outputs["order"].sum() + outputs["restored"].sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert network(order=False, channels=0)(views()).keys() >= {"global_1", "local_2"}


def test_an_encoder_of_another_stride_is_named() -> None:
    net = GridConsistencyNetwork(nn.Conv2d(1, 16, 2, stride=2), 16, (3, 2), 4)
    with pytest.raises(ValueError, match="Conv2d gives \\(6, 4\\) tokens"):
        net(views())
