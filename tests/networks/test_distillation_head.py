"""DistillationHead: cosines with prototypes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from anatomy_ssl.networks.distillation_head import DistillationHead


def head(train_gain: bool = False) -> DistillationHead:
    """Small, with weights of a size."""
    torch.manual_seed(0)
    found = DistillationHead(5, 16, 4, 7, train_gain)
    with torch.no_grad():
        for parameter in found.mlp.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return found


def test_scores_are_cosines_with_the_prototypes() -> None:
    net, x = head(), torch.randn(3, 6, 5)
    prototypes = net.last_layer.parametrizations.weight.original1
    expected = F.cosine_similarity(net.mlp(x)[..., None, :], prototypes, dim=-1)
    torch.testing.assert_close(net(x), expected)
    with torch.no_grad():
        prototypes.mul_(torch.rand(7, 1) + 1)  # their length does not matter
    torch.testing.assert_close(net(x), expected)


def test_the_papers_sizes() -> None:
    net = DistillationHead(384)
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim == 2 and p.shape[1] > 1]
    assert shapes == [(2048, 384), (2048, 2048), (256, 2048), (512, 256)]


@pytest.mark.parametrize("train_gain", [False, True])
def test_the_gain_is_trained_where_asked(train_gain: bool) -> None:
    net = head(train_gain)
    net(torch.randn(3, 5)).square().sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None]
    assert still == ([] if train_gain else ["last_layer.parametrizations.weight.original0"])


def test_a_copy_moves_by_itself_and_the_state_fits() -> None:
    net, x = head(), torch.randn(3, 5)
    copied = copy.deepcopy(net)
    with torch.no_grad():
        net.last_layer.parametrizations.weight.original1.neg_()
    torch.testing.assert_close(net(x), -copied(x))
    copied.load_state_dict(net.state_dict())
    assert torch.equal(net(x), copied(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_scores(dtype: torch.dtype) -> None:
    """Of tokens that are all zero, tiny or large."""
    net = head()
    with torch.no_grad():
        for parameter in net.mlp.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
    x = torch.tensor([0.0, 1e-7, 300.0])[:, None].expand(3, 5).clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        scores = net(x)
    scores.float().square().sum().backward()
    assert torch.isfinite(scores).all()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


def test_standardised_rows_are_scored_without_what_they_share() -> None:
    """Each feature of all rows by its mean and spread, in both modes alike; no state of its own."""
    torch.manual_seed(1)
    plain, net, x = head(), DistillationHead(5, 16, 4, 7, standardise=True), torch.randn(3, 6, 5)
    net.load_state_dict(plain.state_dict())
    rows = x.flatten(0, 1)
    expected = plain((rows - rows.mean(dim=0)) / (rows.var(dim=0, unbiased=False) + 1e-5).sqrt()).unflatten(0, (3, 6))
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.eval()(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(10 * x + 5 * torch.randn(5)), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain(x), expected, atol=0.1)


def test_standardising_needs_more_than_one_row() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        DistillationHead(5, 16, 4, 7, standardise=True)(torch.randn(1, 5))
