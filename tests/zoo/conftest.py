"""A small complete bundle, and a server on 127.0.0.1."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anatomy_ssl.__main__ import main

TENSOR = {"type": "image", "format": "magnitude", "num_channels": 1, "spatial_shape": [8, 8, 8], "dtype": "float32"}
TENSOR |= {"value_range": [0, 1], "is_patch_data": True, "channel_def": {"0": "image"}}
METADATA: dict[str, Any] = {
    "schema": "https://example.org/meta_schema_20240725.json",
    "version": "0.2.0",
    "changelog": {"0.2.0": "more", "0.1.0": "first"},
    "monai_version": "1.5.1",
    "pytorch_version": "2.6.0",
    "numpy_version": "1.26.4",
    "required_packages_version": {"nibabel": "5.3.2"},
    "task": "finds things",
    "description": "A test object.",
    "authors": "the tests",
    "copyright": "Copyright (c) the tests",
    "network_data_format": {"inputs": {"image": TENSOR}, "outputs": {"pred": TENSOR | {"num_channels": 2}}},
}
NET = "$torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.BatchNorm3d(4), torch.nn.Conv3d(4, 2, 1))"
COMMON: dict[str, Any] = {
    "imports": ["$import torch"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/data'",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cpu')",
    "net": NET,
    "run": ["$@device"],
}
TRAIN: dict[str, Any] = {
    **COMMON,
    "network_def": {
        "_target_": "anatomy_ssl.weights.pretrained",
        "network": "@net",
        "path": "$@bundle_root + '/models/pretrained/encoder.pt'",
    },
    "val_interval": 1,
    "training": "%run",
    "train": {
        "dataset": {"_target_": "Dataset", "data": [], "transform": "@train#preprocessing"},
        "preprocessing": {"_target_": "Identity"},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [
            {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": "@val_interval"}
        ],
        "trainer": {"max_epochs": 1, "train_handlers": "@train#handlers", "inferer": "@train#inferer"},
    },
    "validate": {
        "dataset": {"_target_": "Dataset", "data": []},
        "handlers": [],
        "evaluator": {"val_handlers": "@validate#handlers"},
    },
}
INFERENCE: dict[str, Any] = {
    **COMMON,
    "network_def": "@net",
    "dataset": {"_target_": "Dataset", "data": []},
    "inferer": {"_target_": "SimpleInferer"},
    "evaluator": {"network": "@network_def"},
}


def network(seed: int) -> nn.Module:
    """The bundle's network."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1))


def write_bundle(folder: Path) -> Path:
    """A bundle without problems."""
    for name in ("configs", "docs", "models/pretrained"):
        (folder / name).mkdir(parents=True)
    for name, content in {"metadata": METADATA, "train": TRAIN, "inference": INFERENCE}.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        (folder / name).write_text("Written by a test.")
    torch.save(network(0).state_dict(), folder / "models" / "model.pt")
    torch.save(network(1).state_dict(), folder / "models" / "pretrained" / "encoder.pt")
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundles" / "tiny")


@pytest.fixture
def edit(bundle: Path) -> Callable[..., None]:
    """Change a config: `edit("train", "train#handlers", {})`; no value takes the key out."""

    def change(name: str, key: str, *value: Any) -> None:
        path = bundle / "configs" / f"{name}.json"
        content = json.loads(path.read_text())
        *parents, last = key.split("#")
        inner = content
        for parent in parents:
            inner = inner[parent]
        if value:
            inner[last] = value[0]
        else:
            del inner[last]
        path.write_text(json.dumps(content))

    return change


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the program in this process; returns its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["anatomy_ssl", *map(str, arguments)])
        try:
            return main()
        except SystemExit as end:
            return int(end.code or 0)

    return run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which its files can be downloaded."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
