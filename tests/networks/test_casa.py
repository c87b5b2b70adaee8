"""ConditionalAlignment: the formula of the attention layer, and what it does not depend on."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from anatomy_ssl.networks.casa import ConditionalAlignment


def layer(dropout: float = 0.0) -> ConditionalAlignment:
    """Of width 12 with 3 heads of 5 features; all weights random."""
    torch.manual_seed(0)
    casa = ConditionalAlignment(12, 3, 5, 20, dropout).double()
    with torch.no_grad():
        for parameter in casa.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return casa


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    """Random ones."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_formula() -> None:
    """One image and one head at a time."""
    casa = layer()
    weights: dict[str, torch.Tensor] = {}
    for name in ("to_q", "to_k", "to_v"):
        linear = getattr(casa.attention, name)
        assert isinstance(linear, nn.Linear)
        assert linear.bias is None
        weights[name] = linear.weight
    query, context = tokens(2, 4, 12), tokens(2, 7, 12, seed=2)
    for image, (q, c) in enumerate(zip(query, context)):
        found = []
        for head in range(3):
            rows = slice(5 * head, 5 * head + 5)
            scores = (q @ weights["to_q"][rows].T) @ (c @ weights["to_k"][rows].T).T / math.sqrt(5)
            found.append(scores.softmax(dim=1) @ (c @ weights["to_v"][rows].T))
        x = casa.norm_1(q + casa.attention.out_proj(torch.cat(found, dim=1)))
        expected = casa.norm_2(x + casa.feedforward.linear2(F.gelu(casa.feedforward.linear1(x))))
        torch.testing.assert_close(casa(query, context)[image], expected)


def test_the_papers_sizes() -> None:
    casa = ConditionalAlignment()
    assert casa.attention.to_q.weight.shape == casa.attention.to_v.weight.shape == (8 * 64, 512)
    assert casa.feedforward.linear1.out_features == 2048


def test_the_context_is_a_set_and_the_query_a_list() -> None:
    casa, query, context = layer(), tokens(2, 4, 12), tokens(2, 7, 12, seed=2)
    torch.testing.assert_close(casa(query, context.flip(1)), casa(query, context))
    torch.testing.assert_close(casa(query.flip(1), context), casa(query, context).flip(1))


def test_nothing_is_dropped_in_evaluation_mode() -> None:
    casa, query, context = layer(0.5), tokens(2, 4, 12), tokens(2, 7, 12, seed=2)
    assert not torch.equal(casa(query, context), casa(query, context))
    torch.testing.assert_close(casa.eval()(query, context), layer()(query, context))
