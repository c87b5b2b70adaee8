"""GridQuality against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from anatomy_ssl.metrics.grid import GridQuality


def outputs(images: int = 6, cells: int = 5, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random predictions and targets."""
    g = torch.Generator().manual_seed(seed)
    pred = {
        f"{kind}_{view}": torch.randn(images, cells, 4, generator=g) for kind in ("tokens", "local") for view in (1, 2)
    }
    pred["order"] = torch.randn(images, cells, cells, generator=g)
    match = torch.stack([torch.randperm(cells, generator=g) for _ in range(images)])
    match[torch.rand(match.shape, generator=g) < 0.3] = -1
    order = torch.stack([torch.randperm(cells, generator=g) for _ in range(images)])
    ordered = torch.arange(images) % 3 == 0
    return pred, {"target_order": order, "match": match, "ordered": ordered}


def test_equals_loops_over_several_batches() -> None:
    metric, right, places, same, other = GridQuality(), 0, 0, [], []
    for seed in range(3):
        pred, target = outputs(seed=seed)
        metric.update((pred, target))
        for n in range(6):
            for i in range(5):
                if not target["ordered"][n]:
                    right += int(pred["order"][n, i].argmax() == target["target_order"][n, i])
                    places += 1
                elif target["match"][n, i] >= 0:
                    for j in range(5):
                        c = float(cosine_similarity(pred["local_1"][n, i], pred["local_2"][n, j], dim=0))
                        (same if j == target["match"][n, i] else other).append(c)
    found = metric.compute()
    assert found["order_accuracy"] == pytest.approx(right / places)
    assert found["order_times_chance"] == pytest.approx(5 * right / places)
    assert found["local_gap"] == pytest.approx(sum(same) / len(same) - sum(other) / len(other), abs=1e-5)
    assert found["token_spread"] > 0.5


def test_perfect_and_collapsed_networks() -> None:
    pred, target = outputs()
    pred["order"] = torch.nn.functional.one_hot(target["target_order"], 5).float()
    place = torch.eye(5)
    pred["local_1"] = place.expand(6, -1, -1)
    pred["local_2"] = torch.zeros(6, 5, 5)
    for n in range(6):
        for i, j in enumerate(target["match"][n].tolist()):
            if j >= 0:
                pred["local_2"][n, j] = place[i]
    metric = GridQuality()
    metric.update((pred, target))
    assert metric.compute()["order_accuracy"] == 1
    assert metric.compute()["local_gap"] == pytest.approx(1.0)
    metric.reset()
    metric.update(({**pred, "tokens_1": torch.ones(6, 5, 4)}, target))
    assert metric.compute()["token_spread"] == 0


def test_nothing_shuffled_says_nothing_of_order() -> None:
    pred, target = outputs()
    metric = GridQuality()
    metric.update((pred, {**target, "ordered": torch.ones(6, dtype=torch.bool)}))
    assert math.isnan(metric.compute()["order_accuracy"])
    assert math.isfinite(metric.compute()["local_gap"])


def test_centring_takes_out_what_all_cells_share() -> None:
    """A large common vector hides the gap of the local embeddings; tokens are as they are."""
    pred, target = outputs()
    shifted = {name: tensor + 100 if name.startswith("local") else tensor for name, tensor in pred.items()}
    results = []
    for centre, output in ((True, pred), (True, shifted), (False, shifted)):
        metric = GridQuality(centre)
        metric.update((output, target))
        results.append(metric.compute())
    assert results[0]["local_gap"] == pytest.approx(results[1]["local_gap"], abs=1e-3)
    assert abs(results[2]["local_gap"]) < 1e-3 < abs(results[1]["local_gap"])
    assert results[1]["token_gap"] == results[2]["token_gap"]
