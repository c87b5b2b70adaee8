"""AliceNetwork: outputs by name, a teacher that runs no further than it must, CASA asked by the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR
from torch import nn

from anatomy_ssl.losses.distillation import DistillationLoss
from anatomy_ssl.networks.alice import AliceNetwork
from anatomy_ssl.networks.momentum import StudentTeacher
from anatomy_ssl.networks.swin_unetr_stages import SwinUNETRStages

SIZES = {
    "hidden": 16,
    "bottleneck": 8,
    "prototypes": 10,
    "width": 12,
    "heads": 3,
    "head_features": 4,
    "feedforward": 20,
}


class Backbone(nn.Module):
    """Two stages of convolutions and as many back; says what ran."""

    num_features, decoder_features = 6, 4

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv, up = (nn.Conv2d, nn.ConvTranspose2d) if dims == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.down = nn.ModuleList([conv(1, 4, 2, 2), conv(4, 6, 2, 2)])
        self.up = nn.ModuleList([up(6, 4, 2, 2), up(4, 1, 2, 2)])
        self.ran: list[str] = []

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Both stages."""
        self.ran.append(f"encode {len(x)}")
        middle = self.down[0](x).tanh()
        return [x, middle, self.down[1](middle)]

    def first_decoder(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """With a skip."""
        self.ran.append("first")
        return self.up[0](maps[-1]).tanh() + maps[-2]

    def restore(self, maps: list[torch.Tensor], first: torch.Tensor) -> torch.Tensor:
        """The image."""
        self.ran.append("restore")
        return self.up[1](first)


def pair(dims: int = 3, shared: tuple[str, ...] = (), **changes: Any) -> StudentTeacher:
    """Student and teacher."""
    torch.manual_seed(0)
    return StudentTeacher(AliceNetwork(Backbone(dims), **{**SIZES, **changes}), shared)


def views(dims: int = 3, batch: int = 2, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    """Masked and whole ones, 8 x 4 (x 4) voxels."""
    rng = torch.Generator().manual_seed(seed)
    whole = [torch.randn(batch, 1, *(8, 4, 4)[:dims], generator=rng) for _ in range(2)]
    return {"whole": whole, "masked": [view * (view > 0) for view in whole]}


@pytest.mark.parametrize(("dims", "cells"), [(2, 2), (3, 2)])
def test_outputs(dims: int, cells: int) -> None:
    outputs = pair(dims)(views(dims))
    expected: dict[str, tuple[int, ...]] = {}
    for view in (1, 2):
        scores = {f"cls_{view}": (2, 10), f"aligned_{view}": (2, cells, 10), f"pooled_{view}": (2, 6)}
        expected |= scores | {f"teacher_{name}": shape for name, shape in scores.items()}
        expected |= {f"tokens_{view}": (2, cells, 12), f"restored_{view}": (2, 1, *(8, 4, 4)[:dims])}
    assert {name: tuple(value.shape) for name, value in outputs.items()} == expected
    assert [name for name, value in outputs.items() if not value.requires_grad] == [
        name for name in outputs if "teacher" in name or "pooled" in name
    ]


@pytest.mark.parametrize(
    ("changes", "teacher"),
    [
        ({}, ["encode 4"]),
        ({"teacher_tokens": "decoder"}, ["encode 4", "first"]),
        ({"objectives": ["reconstruction"]}, []),
    ],
)
def test_both_views_go_in_one_batch_and_the_teacher_stops_early(changes: dict[str, Any], teacher: list[str]) -> None:
    network = pair(**changes)
    network(views())
    assert network.student.backbone.ran == ["encode 4", "first", "restore"]
    assert network.teacher.backbone.ran == teacher


def test_the_student_sees_masked_views_and_the_teacher_whole_ones() -> None:
    network, x = pair().eval(), views()
    outputs = network(x)
    other = network({"masked": x["masked"], "whole": [view + 1 for view in x["whole"]]})
    changed = {name for name in outputs if not torch.equal(outputs[name], other[name])}
    assert changed == {name for name in outputs if name.startswith("teacher_")}


def test_views_do_not_see_each_other() -> None:
    """Swapping the views swaps every output."""
    network, x = pair().eval(), views()
    one, other = network(x), network({name: [b, a] for name, (a, b) in x.items()})
    assert len(one) == 16
    for name, value in one.items():
        swapped = name[:-1] + ("2" if name.endswith("1") else "1")
        torch.testing.assert_close(value, other[swapped])


@pytest.mark.parametrize("align", ["tokens", "outputs"])
@pytest.mark.parametrize("teacher_tokens", ["encoder", "decoder"])
def test_the_aligned_tokens_are_casas_answers(align: str, teacher_tokens: str) -> None:
    """Against the definition, with a teacher that differs from the student."""
    network = pair(align=align, teacher_tokens=teacher_tokens, prototypes=12).eval()
    with torch.no_grad():
        for parameter in network.teacher.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    x = views()
    outputs = network(x)

    def answer(branch: AliceNetwork, query: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        if align == "outputs":
            return branch.casa(query, branch.head(context))
        return branch.head(branch.casa(query, context))

    student, teacher = network.student, network.teacher
    maps = student.backbone.encode(x["masked"][0])
    query = student.encoder_projection(maps[-1].flatten(2).transpose(1, 2))
    query = student.head(query) if align == "outputs" else query
    context = student.decoder_projection(student.backbone.first_decoder(maps).flatten(2).transpose(1, 2))
    torch.testing.assert_close(outputs["aligned_1"], answer(student, query, context))
    maps = teacher.backbone.encode(x["whole"][0])
    if teacher_tokens == "decoder":
        context = teacher.decoder_projection(teacher.backbone.first_decoder(maps).flatten(2).transpose(1, 2))
    else:
        context = teacher.encoder_projection(maps[-1].flatten(2).transpose(1, 2))
    torch.testing.assert_close(outputs["teacher_aligned_1"], answer(teacher, query, context))


def test_standardised_heads_tell_views_apart_that_share_nearly_everything() -> None:
    """Scores of four views that differ by some hundredths."""
    x = views()
    x = {name: [1 + 0.03 * view for view in pair_of_views] for name, pair_of_views in x.items()}
    spreads = []
    for standardise in (False, True):
        outputs = pair(standardise=standardise).eval()(x)
        spreads.append(
            [torch.cat([outputs[f"{n}_1"], outputs[f"{n}_2"]]).std(dim=0).mean() for n in ("cls", "teacher_cls")]
        )
    assert max(spreads[0]) < 0.03
    assert min(spreads[1]) > 0.2


def test_the_teacher_is_the_same_in_training_mode() -> None:
    """CASA drops nothing in the target; in the student it does."""
    network, x = pair(dropout=0.5, objectives=["patch"]), views()
    with torch.no_grad():
        student = network.eval()(x)
        network.train()
        one, other = (network.teacher(x, student) for _ in range(2))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert not torch.equal(network(x)["aligned_1"], student["aligned_1"])


@pytest.mark.parametrize("shared", [(), ("casa",)])
def test_a_shared_casa_is_the_students(shared: tuple[str, ...]) -> None:
    network = pair(shared=shared)
    with torch.no_grad():
        for parameter in network.student.casa.parameters():
            parameter.add_(1)
    states = [branch.casa.state_dict() for branch in (network.student, network.teacher)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]) is bool(shared)
    network.train()
    assert network.student.casa.training
    assert not network.teacher.casa.training


@pytest.mark.parametrize("align", ["tokens", "outputs"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains(dtype: torch.dtype, align: str) -> None:
    """Finite losses under autocast, for views that are empty in part (float16's gradients are a scaler's matter)."""
    network, x = pair(align=align, prototypes=12, shared=("casa",)), views()
    x["masked"][0].zero_()
    loss = DistillationLoss(12, teacher_temperature=0.008)
    with torch.autocast("cpu", dtype):
        outputs = network(x)
        names = [f"{kind}_{view}" for kind in ("aligned", "teacher_aligned") for view in (1, 2)]
        total = loss(*(outputs[name] for name in names))
    total.backward()
    assert torch.isfinite(total)
    gradients = [p.grad for p in network.student.parameters() if p.grad is not None]
    assert len(gradients) > 15
    assert dtype == torch.float16 or all(torch.isfinite(gradient).all() for gradient in gradients)


OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    "global": ("cls",),
    "patch": ("aligned", "tokens"),
    "reconstruction": ("restored",),
}


@pytest.mark.parametrize("objectives", [("global",), ("patch",), ("reconstruction",), ("global", "reconstruction")])
def test_what_no_loss_needs_is_left_out(objectives: tuple[str, ...]) -> None:
    """Neither outputs nor weights; of the rest, every weight of heads and alignment gets a gradient."""
    network = pair(objectives=objectives)
    outputs = network(views())
    kinds = {name[:-2] for name in outputs if not name.startswith("teacher_")}
    assert kinds == {"pooled"}.union(*(OBJECTIVES[name] for name in objectives))
    sum(value.square().sum() for value in outputs.values() if value.requires_grad).backward()  # type: ignore[union-attr]
    without = [name for name, p in network.student.named_parameters() if p.grad is None and "backbone" not in name]
    contrast = {"global", "patch"} & set(objectives)
    assert without == (["head.last_layer.parametrizations.weight.original0"] if contrast else [])


def test_with_all_objectives_every_weight_is_trained() -> None:
    network = pair()
    sum(value.square().sum() for value in network(views()).values() if value.requires_grad).backward()  # type: ignore[union-attr]
    assert [name for name, p in network.student.named_parameters() if p.grad is None] == [
        "head.last_layer.parametrizations.weight.original0"
    ]
    assert all(p.grad is None for p in network.teacher.parameters())


def test_on_monais_swin_unetr_the_restored_view_is_its_whole_output() -> None:
    """In 2D; the weights of the teacher's backbone are those of a SwinUNETR."""
    torch.manual_seed(0)
    backbone = SwinUNETRStages(SwinUNETR(1, 1, feature_size=12, depths=(1, 1, 1, 1), window_size=4, spatial_dims=2))
    network = StudentTeacher(AliceNetwork(backbone, **SIZES))  # type: ignore[arg-type]
    x = {name: [torch.randn(1, 1, 64, 64) for _ in range(2)] for name in ("masked", "whole")}
    outputs = network.eval()(x)
    assert outputs["aligned_1"].shape == (1, 4, 10)
    torch.testing.assert_close(outputs["restored_2"], backbone.network(x["masked"][1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_tokens": "both"}, "teacher_tokens takes encoder, decoder, not both"),
        ({"align": "heads"}, "align takes tokens, outputs, not heads"),
        ({"objectives": ["local"]}, "objectives takes global, patch, reconstruction, not local"),
        ({"align": "outputs"}, "prototypes 10 and width 12 have to be equal"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair(**changes)
