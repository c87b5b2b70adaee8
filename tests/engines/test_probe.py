"""Lesion probes: fair folds, the same for all methods, and a fresh encoder in each."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader

from anatomy_ssl.engines import probe
from anatomy_ssl.engines.probe import LesionProbe, predict
from tests.engines.planted import ChannelMeans, crops, write_planted

pytest.importorskip("matplotlib")


def lesion_probe(folder: Path, items: list[dict[str, Any]] | None = None, **changes: Any) -> LesionProbe:
    """Six patients, three folds."""
    items = crops(range(6), 16) if items is None else items
    options: dict[str, Any] = {
        "encoder": ChannelMeans(seed=5),
        "checkpoints": {"planted": write_planted(folder / "planted.pt")},
        "random_encoders": [ChannelMeans(seed=0)],
        "loader": DataLoader(items, batch_size=10),
        "output_dir": str(folder / "out"),
        "folds": 3,
        "epochs": 15,
        "learning_rate": 0.02,
        "batch_size": 16,
    }
    return LesionProbe(**{**options, **changes})


def shuffled(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same crops with one another's lesions."""
    order = np.random.default_rng(0).permutation(len(items))
    return [{**item, "lesion_volume": items[i]["lesion_volume"]} for item, i in zip(items, order)]


def values(folder: Path, metric: str) -> dict[str, list[float]]:
    """Method -> value of each fold, as written."""
    found: dict[str, list[float]] = {}
    with open(folder / "out" / "probe.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] == metric:
                found.setdefault(row["method"], []).append(float(row["value"]))
    return found


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[str], set[str], list[int]]]:
    """Patients of the training part, of the test part, and the test rows, of every fold that is run."""
    seen: list[tuple[set[str], set[str], list[int]]] = []
    original = probe.cross_validate

    def spy(subject: np.ndarray, target: np.ndarray, fit_predict: Callable, *args: Any) -> Any:
        def recorded(train: np.ndarray, goal: torch.Tensor, test: np.ndarray, fold: int) -> np.ndarray:
            seen.append((set(subject[train]), set(subject[test]), test.tolist()))
            return fit_predict(train, goal, test, fold)

        return original(subject, target, recorded, *args)

    monkeypatch.setattr(probe, "cross_validate", spy)
    # linear_probe, for frozen encoders, looks the name up in its own module
    monkeypatch.setattr("anatomy_ssl.metrics.probe.cross_validate", spy)
    return seen


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_folds_keep_patients_together_and_are_the_same_for_all_methods(mode: str, folds: list, tmp_path: Path) -> None:
    """And for both tasks: else a paired test compares nothing."""
    lesion_probe(tmp_path, mode=mode, epochs=1).run()
    assert len(folds) == 2 * 2 * 3
    for train, test, _ in folds:
        assert not train & test
        assert len(train | test) == 6
    for start in range(0, 12, 3):
        assert [rows for *_, rows in folds[start : start + 3]] == [rows for *_, rows in folds[:3]]
        assert sorted(row for *_, rows in folds[start : start + 3] for row in rows) == list(range(96))


def test_a_frozen_planted_encoder_beats_a_random_one(tmp_path: Path) -> None:
    """In both tasks; tables and figures are written."""
    tables = lesion_probe(tmp_path).run()
    for metric, bound in (("auc", 0.97), ("spearman", 0.9)):
        planted, random = tables[metric]
        assert (planted["method"], random["method"]) == ("planted", "random_0")
        assert planted["mean"] > bound > 0.85 > random["mean"]
        assert planted["mean"] == pytest.approx(np.mean(values(tmp_path, metric)["planted"]))
        assert len(values(tmp_path, metric)["random_0"]) == 3
        assert (tmp_path / "out" / f"probe_{metric}.png").stat().st_size > 0
    assert (tmp_path / "out" / "embeddings_probe_planted.npz").is_file()


def test_finetuning_learns_a_signal_and_does_not_invent_one(tmp_path: Path) -> None:
    """From random weights: near 1 where the crops show the lesion, near one half where labels were shuffled."""
    options: dict[str, Any] = {"mode": "finetune", "tasks": ["classification"], "checkpoints": {}}
    items = crops(range(6), 30)
    lesion_probe(tmp_path, items, **options).run()
    assert min(values(tmp_path, "auc")["random_0"]) > 0.93
    lesion_probe(tmp_path, shuffled(items), **options).run()
    assert 0.35 < np.mean(values(tmp_path, "auc")["random_0"]) < 0.65


def test_every_fold_has_a_fresh_copy_and_the_given_encoder_is_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one fold learns must not leak into the next."""
    encoder = ChannelMeans(seed=3)
    given = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    starts, heads = [], []
    original = LesionProbe._finetune

    def spy(self: LesionProbe, network: torch.nn.Sequential, *args: Any) -> None:
        starts.append({name: tensor.clone() for name, tensor in network[0].state_dict().items()})
        heads.append(network[1].weight.detach().clone())
        original(self, network, *args)
        assert not torch.equal(network[0].linear.weight, given["linear.weight"])

    monkeypatch.setattr(LesionProbe, "_finetune", spy)
    lesion_probe(tmp_path, mode="finetune", checkpoints={}, random_encoders=[encoder], epochs=2).run()
    assert len(starts) == 6
    for state in [*starts, encoder.state_dict()]:
        assert all(torch.equal(state[name], tensor) for name, tensor in given.items())
    assert not torch.equal(heads[0], heads[1])


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_same_seed_same_numbers(mode: str, tmp_path: Path) -> None:
    """Whatever was drawn before."""
    results = []
    for attempt, seed in enumerate((0, 0, 1)):
        work = lesion_probe(tmp_path, mode=mode, epochs=2, checkpoints={}, seed=seed)
        torch.manual_seed(attempt)
        work.run()
        results.append((tmp_path / "out" / "probe.csv").read_text(encoding="utf-8"))
    assert results[0] == results[1] != results[2]


def test_prediction_is_in_eval_mode_and_independent_of_the_batch() -> None:
    """Otherwise crops of one batch would tell of one another."""
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
    )
    images = torch.randn(7, 1, 2, 2, 2)
    whole = predict(network, images, 7, "cpu")
    assert whole.shape == (7,)
    assert np.allclose(whole, predict(network, images, 2, "cpu"), atol=1e-6)
    assert network.training


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"random_encoders": []}, "random_encoders is empty"),
        ({"mode": "linear"}, "'frozen' or 'finetune'"),
        ({"tasks": ["segmentation"]}, "segmentation"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Named at construction."""
    with pytest.raises(ValueError, match=words):
        lesion_probe(tmp_path, **changes)


def test_more_folds_than_patients(tmp_path: Path) -> None:
    """The message holds both numbers."""
    with pytest.raises(ValueError, match=r"10 folds .* got 6 patients"):
        lesion_probe(tmp_path, folds=10).run()
