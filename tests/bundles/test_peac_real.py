"""The PEAC weights that ship, on radiographs of patients that they never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader

from anatomy_ssl.__main__ import datalist
from anatomy_ssl.data import ScanDataset, load_datalist
from anatomy_ssl.data.sampler import EpochSampler
from anatomy_ssl.metrics.auc import auc_per_label
from anatomy_ssl.metrics.grid import GridQuality
from anatomy_ssl.weights import load_pretrained
from tests.bundles.test_peac import CONFIGS

MODELS = CONFIGS.parent / "models"


@pytest.fixture(scope="module")
def listed(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The split of docs/results.md."""
    output = str(tmp_path_factory.mktemp("cxr") / "cxr.json")
    choice: dict[str, Any] = {"image": "path", "subject": "patient_id", "labels": "Pneumonia", "order": "random"}
    datalist("csv", str(real_data / "cxr" / "labels.csv"), output, seed=0, validation=0, test=120, **choice)
    return output


def test_tokens_know_a_cell_again(listed: str) -> None:
    """The gap of the model card is 0.38, that of random encoders 0.13."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / "pretrain.yaml", CONFIGS / "encoder_small.yaml"])
    parser.update({"global_features": 0, "local_features": 0, "order_prob": 0.0})
    names = ("network_def", "preprocessing", "grid_views", "validate#prepare_batch")
    networks, preparation, views, prepare = (parser.get_parsed_content(name) for name in names)
    dataset = ScanDataset(load_datalist(listed, "test")[:16], [*preparation, views], seed=0, cache_rate=0.0)
    loader = DataLoader(dataset, batch_size=16, sampler=EpochSampler(dataset, shuffle=False))
    inputs, targets = prepare(next(iter(loader)), "cpu")
    gaps = []
    for trained in (True, False):
        network = networks.student.eval()
        if trained:
            random = {name: value.clone() for name, value in network.encoder.state_dict().items()}
            load_pretrained(network.encoder, MODELS / "pretrained" / "encoder.pt", minimum_share=1.0)
        else:
            network.encoder.load_state_dict(random)
        metric = GridQuality()
        with torch.no_grad():
            metric.update((network(inputs), targets))
        gaps.append(metric.compute()["token_gap"])
    assert gaps[0] > 0.3
    assert gaps[1] < 0.2


def test_classifier_is_better_than_chance(listed: str) -> None:
    """AUC on the held-out patients is 0.83; of forty of them, one crop each, clearly above one half."""
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    parser.update({"pretrained": None})
    network = parser.get_parsed_content("classifier").eval()
    load_pretrained(network, MODELS / "model.pt", minimum_share=1.0)
    transform = [parser.get_parsed_content(name) for name in ("validate#preprocessing", "validate#inferer")]
    dataset = ScanDataset(load_datalist(listed, "test")[:40], transform[0], cache_rate=0.0)
    batch = next(iter(DataLoader(dataset, batch_size=40)))
    with torch.no_grad():
        logits = transform[1](batch["image"], network)
    auc = auc_per_label(logits.numpy(), batch["label"].numpy())
    assert float(auc[0]) > 0.65
