"""embed.yaml: from a folder of scans and a trained embedding to a store that points are matched by."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from anatomy_ssl.data import load_datalist
from anatomy_ssl.data.embedding_store import EmbeddingStore
from anatomy_ssl.engines import ensure_embedding
from anatomy_ssl.matching import EmbeddingMatcher
from tests.bundles.test_alice_embedding import CONFIGS, TINY

DEVICE = {"device": "$torch.device('cpu')"}


def overlay(folder: Path) -> list[str]:
    """Stage one's config, and a file that makes it tiny."""
    (folder / "tiny.json").write_text(json.dumps(TINY))
    return [str(CONFIGS / "pretrain_embedding.yaml"), str(folder / "tiny.json")]


@pytest.fixture(scope="module")
def stage_one(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with embedding.pt and the store of the training patients, by one call."""
    folder = tmp_path_factory.mktemp("alice")
    items = load_datalist(cohort, "training")
    ensure_embedding(overlay(folder), folder / "embedding.pt", folder / "store", items, dataset_dir=str(cohort))
    return folder


def embed(cohort: Path, checkpoint: Path, store: Path, **changes: Any) -> None:
    places = {"dataset_dir": str(cohort), "checkpoint": str(checkpoint), "store": str(store)}
    monai.bundle.run("embedding", config_file=str(CONFIGS / "embed.yaml"), **places, **DEVICE, **changes)


def test_all_volumes_are_embedded(stage_one: Path, cohort: Path, tmp_path: Path) -> None:
    """Vectors of unit length on a grid that covers the volume; matchers need not compute."""
    embed(cohort, stage_one / "embedding.pt", tmp_path / "store")
    items = load_datalist(cohort, "all")
    matcher = EmbeddingMatcher(stage_one / "embedding.pt", tmp_path / "store", compute=False)
    assert len(list((tmp_path / "store").iterdir())) == len(items)
    for item in items:
        stored = matcher.open(item)
        image = nib.load(item["image"])
        corners = nib.affines.apply_affine(image.affine, list(itertools.product(*[(0, n - 1) for n in image.shape])))
        low, high = np.sort(stored.to_world(np.array([[0, 0, 0], np.array(stored.fine.shape[:3]) - 1])), axis=0)
        reach = 24 + 6  # a fine step, half a voxel
        assert (low <= corners.min(axis=0) + reach).all() and (high >= corners.max(axis=0) - reach).all()
        norms = np.linalg.norm(stored.fine.astype(np.float32), axis=-1)
        assert (np.isclose(norms, 1, atol=2e-3) | (norms == 0)).all() and (norms > 0).mean() > 0.5
        assert stored.subject == item["subject"]


def test_a_second_run_embeds_nothing(stage_one: Path, cohort: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    embed(cohort, stage_one / "embedding.pt", store, split="training")
    times = {path: path.stat().st_mtime_ns for path in store.rglob("fine.npy")}
    embed(cohort, stage_one / "embedding.pt", store, split="training")
    assert times and times == {path: path.stat().st_mtime_ns for path in store.rglob("fine.npy")}


def test_stage_one_is_done_once(stage_one: Path, cohort: Path, tmp_path: Path) -> None:
    """A second call trains nothing; what embed.yaml writes is what it wrote."""
    before = (stage_one / "embedding.pt").stat().st_mtime_ns
    items = load_datalist(cohort, "training")
    ensure_embedding("absent.yaml", stage_one / "embedding.pt", stage_one / "store", items)
    assert (stage_one / "embedding.pt").stat().st_mtime_ns == before
    embed(cohort, stage_one / "embedding.pt", tmp_path / "store", split="training")
    model = EmbeddingMatcher(stage_one / "embedding.pt", "").embedder.model
    for item in items:
        one, other = (EmbeddingStore(folder / "store", model).get(item) for folder in (stage_one, tmp_path))
        assert np.array_equal(one.fine, other.fine) and np.array_equal(one.coarse, other.coarse)


def test_a_stopped_stage_one_goes_on(stage_one: Path, cohort: Path, tmp_path: Path) -> None:
    """To the same weights."""
    stop = {"train#handlers": [{"_target_": "tests.bundles.runs.TerminateAt", "iteration": 4}]}
    (tmp_path / "stop.json").write_text(json.dumps({f"+{name}": value for name, value in stop.items()}))
    path = tmp_path / "out" / "embedding.pt"
    with pytest.raises(SystemExit):
        ensure_embedding([*overlay(tmp_path), str(tmp_path / "stop.json")], path, dataset_dir=str(cohort))
    assert not path.exists()
    ensure_embedding(overlay(tmp_path), path, dataset_dir=str(cohort))
    one, other = (torch.load(p, weights_only=True)["model"] for p in (stage_one / "embedding.pt", path))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_without_weights_it_says_so(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, FileNotFoundError)) as refused:
        embed(cohort, tmp_path / "embedding.pt", tmp_path / "store")
    assert f"no weights at {tmp_path / 'embedding.pt'}" in repr(refused.value) + repr(refused.value.__cause__)


def test_two_processes_embed_together(stage_one: Path, cohort: Path, tmp_path: Path) -> None:
    files = [str(CONFIGS / "embed.yaml"), str(CONFIGS / "multi_gpu_embed.yaml")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "embedding", "--config_file", str(files), "--dataset_dir", str(cohort)]
    command += ["--checkpoint", str(stage_one / "embedding.pt"), "--store", str(tmp_path / "store")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    matcher = EmbeddingMatcher(stage_one / "embedding.pt", tmp_path / "store", compute=False)
    assert all(matcher.open(item).subject == item["subject"] for item in load_datalist(cohort, "all"))
