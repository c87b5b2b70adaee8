"""Metrics of matched views, against plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from torch.nn import functional as F

from anatomy_ssl.metrics.alignment import AlignmentQuality
from tests.metrics import two_processes_alignment as processes
from tests.metrics.two_processes_alignment import SHARES, fed, loss, rows

SEEN = sorted([*SHARES[0], *SHARES[1]])


def test_equals_plain_loops() -> None:
    pred, target = rows()
    expected: dict[str, float] = {}
    error = deviation = 0.0
    same, others = [], []
    for i in SEEN:
        for view in (1, 2):
            hidden = target[f"mask_{view}"][i].expand(2, 4, 4)
            values = target[f"whole_{view}"][i][hidden].double()
            error += float((pred[f"restored_{view}"][i][hidden] - values).square().sum())
            deviation += float((values - values.mean()).square().sum())
        for j in SEEN:
            cosine = float(F.cosine_similarity(pred["teacher_pooled_1"][i], pred["teacher_pooled_2"][j], dim=0))
            if i == j:
                same.append(cosine)
            elif target["subject_1"][i] != target["subject_2"][j]:
                others.append(cosine)
    expected["reconstruction_error"] = error / deviation
    expected["view_gap"] = sum(same) / len(same) - sum(others) / len(others)
    for number, (term, name) in enumerate({"global": "cls", "patch": "aligned"}.items(), start=1):
        logits = torch.cat([pred[f"teacher_{name}_{view}"][SEEN].reshape(-1, 6) for view in (1, 2)])
        p = torch.softmax((logits - torch.linspace(-1, 1, 6) * number) / 0.3, dim=1).double()
        expected[f"{term}_entropy"] = float(-(p * p.log()).sum(1).mean()) / math.log(6)
        expected[f"{term}_use"] = float(-(p.mean(0) * p.mean(0).log()).sum()) / math.log(6)
    expected["match_score"] = float(target["score"][SEEN].mean())
    expected["fallback_share"] = sum(i % 3 == 0 for i in SEEN) / len(SEEN)
    expected["same_volume_share"] = 0.0
    assert fed(SEEN).compute() == pytest.approx(expected, abs=1e-6)
    once_the_same = fed([*SEEN, 5]).compute()
    assert once_the_same["same_volume_share"] == pytest.approx(1 / 8)
    assert once_the_same["match_score"] == pytest.approx(expected["match_score"])


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(processes.work, args=(str(tmp_path),), nprocs=2)
    expected = fed(SEEN).compute()
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=False) == pytest.approx(expected, rel=1e-6)


def test_what_perfection_and_collapse_look_like() -> None:
    """Restored voxels, the mean filled in, one prototype for all, one for each, and no preference."""
    pred, target = rows()
    perfect = {**pred, **{f"restored_{v}": target[f"whole_{v}"] for v in (1, 2)}}
    perfect |= {f"teacher_pooled_{v}": torch.eye(9) for v in (1, 2)}
    perfect |= {f"teacher_cls_{v}": torch.eye(6)[torch.arange(9) % 6] * 100 for v in (1, 2)}
    metric = AlignmentQuality(loss(centre=False))
    metric.update((perfect, target))
    found = metric.compute()
    assert found["reconstruction_error"] == 0
    assert found["view_gap"] == pytest.approx(1)
    assert found["global_use"] > 0.96  # nine views on six prototypes
    assert found["global_entropy"] == pytest.approx(0, abs=1e-6)
    collapsed = {**pred, **{f"teacher_cls_{v}": torch.eye(6)[:1].expand(9, 6) * 100 for v in (1, 2)}}
    for view in (1, 2):
        whole, hidden = target[f"whole_{view}"], target[f"mask_{view}"].expand(9, 2, 4, 4)
        mean = (whole * hidden).sum(dim=(1, 2, 3)) / hidden.sum(dim=(1, 2, 3))
        collapsed[f"restored_{view}"] = mean.view(9, 1, 1, 1).expand_as(whole)
        collapsed[f"teacher_aligned_{view}"] = torch.zeros(9, 4, 6)
        collapsed[f"teacher_pooled_{view}"] = torch.ones(9, 5)
    metric.reset()
    metric.update((collapsed, target))
    found = metric.compute()
    assert found["reconstruction_error"] == pytest.approx(1)
    assert (found["global_use"], found["view_gap"]) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-9))
    assert (found["patch_use"], found["patch_entropy"]) == (pytest.approx(1), pytest.approx(1))


def test_what_a_network_does_not_give_is_left_out() -> None:
    """Of a run with reconstruction alone there is a student's pooled token, and nothing is distilled."""
    pred, target = rows()
    alone = {f"pooled_{v}": pred[f"teacher_pooled_{v}"] for v in (1, 2)}
    metric = AlignmentQuality(loss())
    metric.update((alone, target))
    assert set(metric.compute()) == {"view_gap", "match_score", "fallback_share", "same_volume_share"}


def test_values_stand_in_the_engines_metrics() -> None:
    def one(engine: Engine, batch: list[int]) -> dict[str, object]:
        pred, target = ({name: value[batch] for name, value in part.items()} for part in rows())
        return {"pred": pred, "label": target}

    engine = Engine(one)
    AlignmentQuality(loss()).attach(engine, "view_gap")
    engine.run([[0, 1], [2, 3, 4], [6, 8]], max_epochs=2)
    assert engine.state.metrics == pytest.approx(fed([0, 1, 2, 3, 4, 6, 8]).compute())


def test_a_single_pair_has_no_gap() -> None:
    found = fed([1]).compute()
    assert math.isnan(found["view_gap"])
    assert math.isfinite(found["reconstruction_error"])
