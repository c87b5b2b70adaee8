"""Pre-train, export, load into a network, fine-tune, and export that: nothing is lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser

from anatomy_ssl.data.phantom import write_phantom_cohort
from anatomy_ssl.weights import check_recipe, export_encoder, fingerprint, inspect, read_state
from tests.bundles.runs import run
from tests.weights.networks import same

SHAPE = {"spatial_dims": 3, "in_channels": 1, "channels": [4, 8, 16], "strides": [2, 2], "norm": "batch"}
ENCODER = {
    "_target_": "anatomy_ssl.networks.PooledEncoder",
    "out_channels": 8,
    "backbone": {"_target_": "anatomy_ssl.networks.UNetEncoder", **SHAPE},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a pre-training of two epochs on phantoms."""
    cohort = tmp_path_factory.mktemp("phantoms")
    write_phantom_cohort(cohort, subjects=6, spacings=((10.0, 10.0, 10.0),), radiographs=False, progress=False)
    options: dict[str, Any] = {"encoder": ENCODER, "data_license": "Apache-2.0"}
    return run("training", tmp_path_factory.mktemp("run"), cohort, epochs=2, **options)


def test_the_checkpoint_and_the_encoder_say_the_same(trained: Path, tmp_path: Path) -> None:
    """Export of the checkpoint is the file that the training wrote, with its record."""
    exported = export_encoder(trained / "checkpoint.pt", tmp_path / "encoder.pt")
    assert same(read_state(exported), read_state(trained / "encoder.pt"))
    record = inspect(exported).provenance
    assert record == inspect(trained / "encoder.pt").provenance == inspect(trained / "checkpoint.pt").provenance
    check_recipe(exported, {"channels": 1, "crop_size": [8, 8, 8], "crop_spacing": [12.0] * 3})
    with pytest.raises(ValueError, match="crop_size"):
        check_recipe(exported, {"crop_size": [16, 16, 16]})
    assert (record["method"], record["mode"], record["seed"], record["data_license"]) == (
        "isimed",
        "default",
        0,
        "Apache-2.0",
    )
    assert record["epochs"] == 2
    assert record["iterations"] % 2 == 0
    assert record["number_of_patients"] > 1
    assert len(record["patients"]) == len(record["config"]) == len(fingerprint([])) == 64
    assert record["settings"]["network"] == "PooledEncoder"
    assert (record["settings"]["epochs"], record["settings"]["pairs"]) == (2, "same_subject")


def test_from_pre_training_to_torchscript(trained: Path, tmp_path: Path) -> None:
    encoder = export_encoder(trained / "checkpoint.pt", tmp_path / "encoder.pt", part="encoder.backbone")
    target = {"_target_": "UNet", **SHAPE, "out_channels": 2}
    filled = {"_target_": "anatomy_ssl.weights.pretrained", "path": str(encoder), "share_of": "file", "network": target}
    (tmp_path / "train.json").write_text(json.dumps({"network_def": filled}))
    parser = ConfigParser({"network_def": filled, "source": ENCODER["backbone"]})
    network, source = parser.get_parsed_content("network_def"), parser.get_parsed_content("source")
    source.load_state_dict(read_state(encoder))
    x = torch.randn(2, 1, 16, 16, 16)
    network.eval()
    source.eval()
    deepest = network.model[1].submodule[1].submodule(network.model[1].submodule[0](network.model[0](x)))
    torch.testing.assert_close(deepest, source(x), atol=1e-6, rtol=0)

    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(x).square().mean().backward()
    optimizer.step()
    torch.save({"model": network.state_dict()}, tmp_path / "model.pt")
    assert not torch.equal(network.state_dict()["model.0.conv.weight"], read_state(encoder)["model.0.conv.weight"])

    monai.bundle.ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        config_file=str(tmp_path / "train.json"),
        key_in_ckpt="model",
    )
    with torch.no_grad():
        torch.testing.assert_close(
            torch.jit.load(tmp_path / "model.ts").eval()(x), network.eval()(x), atol=1e-6, rtol=0
        )
