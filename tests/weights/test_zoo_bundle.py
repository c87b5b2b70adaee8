"""Bundles of the model zoo's shape start from an encoder of ours with one overlay and no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets.swin_unetr import SwinTransformer

from anatomy_ssl.data.phantom import write_phantom_cohort
from anatomy_ssl.networks import PooledEncoder
from anatomy_ssl.networks.encoders import UNetEncoder
from anatomy_ssl.weights import read_state, save_encoder
from tests.weights.networks import randomised

HERE = Path(__file__).parent
TRANSFER = HERE.parents[1] / "bundles" / "isimed" / "configs" / "transfer.yaml"
SPLEEN = 14  # of the phantoms' organs
CHANNELS = [4, 8, 16, 32, 64]
PATCH = [32, 32, 64]
TINY = {
    "patch_size": PATCH,
    "train#random_transforms#0#num_samples": 1,
    "val_interval": 1,
    "device": "$torch.device('cpu')",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms in Decathlon's folders, the spleen as label, and a BTCV-like list with 13 organs."""
    source, folder = tmp_path_factory.mktemp("phantoms"), tmp_path_factory.mktemp("zoo")
    write_phantom_cohort(source, subjects=3, spacings=((8.0, 8.0, 8.0),), radiographs=False, progress=False)
    pairs = []
    for kind in ("imagesTr", "labelsTr", "organs"):
        (folder / kind).mkdir()
    for image in sorted((source / "images").glob("*.nii.gz")):
        organs = np.asarray(nib.as_closest_canonical(nib.load(source / "organs" / image.name)).dataobj)
        scan = nib.as_closest_canonical(nib.load(image))
        middle = tuple(slice((size - part) // 2, (size + part) // 2) for size, part in zip(scan.shape, PATCH))
        kinds = {"imagesTr": scan.get_fdata(), "labelsTr": organs == SPLEEN, "organs": organs * (organs < SPLEEN)}
        for kind, values in kinds.items():
            nib.save(nib.Nifti1Image(values[middle].astype(np.int16), scan.affine), folder / kind / image.name)
        pairs.append({"image": f"imagesTr/{image.name}", "label": f"organs/{image.name}"})
    (folder / "dataset_0.json").write_text(json.dumps({"training": pairs[:2], "validation": pairs[2:]}))
    return folder


def workflow(name: str, dataset: Path, folder: Path, **changes: Any) -> ConfigWorkflow:
    """A bundle's train.json with the overlay on top."""
    files = [str(HERE / f"zoo_{name}.json"), str(TRANSFER)]
    places = {"dataset_dir": str(dataset), "bundle_root": str(folder), "ckpt_dir": str(folder)}
    return monai.bundle.create_workflow(config_file=files, logging_file=False, **{**TINY, **places, **changes})


BUNDLES: dict[str, tuple[dict[str, Any], Any, dict[str, Any], str]] = {
    "spleen": (
        {"network_def#channels": CHANNELS, "max_epochs": 1},
        lambda: UNetEncoder(
            spatial_dims=3, in_channels=1, channels=CHANNELS, strides=[2] * 4, num_res_units=2, norm="batch"
        ),
        {"pretrained_share_of": "file"},
        "",
    ),
    "btcv": (
        {"network_def#feature_size": 12, "epochs": 1},
        lambda: SwinTransformer(1, 12, [7] * 3, [2] * 3, [2] * 4, [3, 6, 12, 24]),
        {"pretrained_module": "swinViT"},
        "swinViT.",
    ),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_training_starts_from_the_encoder(name: str, dataset: Path, tmp_path: Path) -> None:
    """Every tensor of the encoder is in the network before the first step; one epoch trains it and saves a model."""
    changes, make, options, inner = BUNDLES[name]
    encoder = randomised(PooledEncoder(make(), out_channels=5))
    path = save_encoder(encoder.state_dict(), {"method": "isimed"}, tmp_path / "encoder.pt")
    run = workflow(name, dataset, tmp_path, pretrained=str(path), **changes, **options)
    run.initialize()
    network = run.parser.get_parsed_content("network")
    started = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    for key, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(started[inner + key], tensor), key
    assert run.parser.get_parsed_content("train#trainer").network is network
    run.run()
    (model,) = tmp_path.glob("model*.pt")
    trained = read_state(model)
    moved = [
        key for key in encoder.backbone.state_dict() if not torch.equal(trained[inner + key], started[inner + key])
    ]
    assert len(moved) > len(started) / 10
    assert list(trained) == list(started)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": None}, "give --pretrained"),
        ({"pretrained_share_of": "network"}, "under the minimum"),
        ({"pretrained_share_of": "file", "network_def#in_channels": 2}, "input layer"),
        ({"pretrained_share_of": "file", "network_def#num_res_units": 0}, "under the minimum"),
    ],
)
def test_what_does_not_fit_stops_the_run(
    options: dict[str, Any], message: str, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before anything is trained, with the cause in the log above MONAI's own error."""
    changes, make, _, _ = BUNDLES["spleen"]
    path = save_encoder(PooledEncoder(make()).state_dict(), {}, tmp_path / "encoder.pt")
    run = workflow("spleen", dataset, tmp_path, **{"pretrained": str(path), **changes, **options})
    run.initialize()
    with pytest.raises(RuntimeError):
        run.parser.get_parsed_content("network")
    assert any(message in line for line in caplog.messages)


@pytest.mark.parametrize("word", [True, "true", "True"])
def test_words_of_the_command_line(word: Any, dataset: Path, tmp_path: Path) -> None:
    changes, make, options, _ = BUNDLES["spleen"]
    path = save_encoder(make().state_dict(), {}, tmp_path / "encoder.pt")
    inputs = {"network_def#in_channels": 2, "pretrained_inflate": word, "pretrained_interpolate": "false"}
    run = workflow("spleen", dataset, tmp_path, pretrained=str(path), **changes, **options, **inputs)
    run.initialize()
    first = run.parser.get_parsed_content("network").state_dict()["model.0.conv.unit0.conv.weight"]
    assert torch.equal(first[:, 0], first[:, 1])
