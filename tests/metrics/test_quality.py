from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler

from anatomy_ssl.metrics.collapse import rankme, spread
from anatomy_ssl.metrics.position import cross_fitted_position_scores, rho_across, rho_within
from anatomy_ssl.metrics.quality import EmbeddingQuality
from tests.metrics import two_processes
from tests.metrics.cohort import cohort

NAMES = {"rho_within", "rho_across", "position_error_mm", "position_r2", "rankme", "spread"}


def output(rows: slice) -> dict[str, dict[str, torch.Tensor]]:
    embedding, position, subject = (column[rows] for column in two_processes.validation_rows())
    return {"pred": {"embedding": embedding}, "label": {"position": position, "subject": subject}}


def test_equals_the_functions_on_the_whole_set() -> None:
    emb = cohort(6, 10, noise=0.3)
    values = two_processes.fed(range(60), max_pairs=10**6).compute()
    expected = cross_fitted_position_scores(emb)
    assert set(values) == NAMES
    assert values["rho_within"] == pytest.approx(rho_within(emb), abs=1e-6)
    assert values["rho_across"] == pytest.approx(rho_across(emb), abs=1e-3)
    assert values["position_r2"] == pytest.approx(expected["r2"], abs=1e-6)
    assert values["position_error_mm"] == pytest.approx(expected["median_error_mm"], abs=1e-2)
    assert values["rankme"] == pytest.approx(rankme(emb.embedding), rel=1e-5)
    assert values["spread"] == pytest.approx(spread(emb.embedding), rel=1e-5)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Exactly: pairs are subsampled here, so this also shows that the order of crops does not matter."""
    torch.multiprocessing.spawn(two_processes.work, args=(str(tmp_path),), nprocs=2)
    expected = two_processes.fed(range(60)).compute()
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name in two_processes.SHARES:
            assert results[name] == pytest.approx(expected, rel=1e-6), name
        assert "no crops" in results["nothing"]


def test_values_stand_in_the_engines_metrics_and_nothing_else() -> None:
    engine = Engine(lambda engine, rows: output(rows))
    EmbeddingQuality().attach(engine, "quality")
    metrics = engine.run([slice(0, 25), slice(25, 60)]).metrics
    assert set(metrics) == NAMES
    assert all(isinstance(value, float) for value in metrics.values())


def test_each_epoch_starts_anew() -> None:
    engine = Engine(lambda engine, rows: output(rows))
    EmbeddingQuality(max_pairs=100).attach(engine, "quality")
    engine.run([slice(0, 60)], max_epochs=2)
    assert engine.state.metrics == two_processes.fed(range(60)).compute()


def test_as_key_metric_of_a_monai_evaluator() -> None:
    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"embedding": x}

    def prepare(batch: slice, device: object, non_blocking: bool, **kwargs: object) -> tuple:
        whole = output(batch)
        return MetaTensor(whole["pred"]["embedding"]), whole["label"]

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[slice(0, 25), slice(25, 60)],
        network=Network(),
        prepare_batch=prepare,
        key_val_metric={"rho_within": EmbeddingQuality()},
        val_handlers=[StatsHandler(output_transform=lambda x: None)],
        decollate=False,
    )
    evaluator.run()
    assert set(evaluator.state.metrics) == NAMES
    assert evaluator.state.best_metric == evaluator.state.metrics["rho_within"] > 0.5


def test_one_subject() -> None:
    embedding, position, _ = two_processes.validation_rows()
    metric = EmbeddingQuality()
    metric.update((embedding, position, torch.zeros(60, dtype=torch.long)))
    values = metric.compute()
    missing = {"rho_across", "position_r2", "position_error_mm"}
    assert {name for name, value in values.items() if math.isnan(value)} == missing


def test_half_precision_and_collapse() -> None:
    _, position, subject = two_processes.validation_rows()
    metric = EmbeddingQuality()
    metric.update((torch.ones(60, 8, dtype=torch.bfloat16, requires_grad=True), position, subject[:, None]))
    values = metric.compute()
    assert values["spread"] == 0
    assert values["rankme"] == pytest.approx(1, abs=1e-3)
    assert np.isnan(values["rho_within"])
    assert values["position_r2"] < 0.1


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="EmbeddingQuality needs"):
        EmbeddingQuality().update((torch.zeros(4, 2), torch.zeros(3, 3), torch.zeros(4)))
