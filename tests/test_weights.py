from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet121, SegResNetDS
from monai.networks.nets.segresnet_ds import SegResEncoder
from torch import nn

from anatomy_ssl.data.atomic import atomic_save
from anatomy_ssl.networks import EncoderWithHeads, PooledEncoder
from anatomy_ssl.weights import check_recipe, export_encoder, fingerprint, load_pretrained, pretrained, read_state

PROVENANCE = {"method": "isimed", "seed": 0, "epochs": 2, "versions": {"torch": "2"}}


def densenet(seed: int = 0, out_channels: int = 6) -> DenseNet121:
    torch.manual_seed(seed)
    blocks = {"init_features": 8, "growth_rate": 4, "block_config": (1, 1, 1, 1)}
    return DenseNet121(spatial_dims=2, in_channels=1, out_channels=out_channels, **blocks)


def student(seed: int = 0) -> EncoderWithHeads:
    return EncoderWithHeads(densenet(seed), {"distance": nn.Linear(6, 4)})


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Training checkpoint of `student(0)`."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": student().state_dict(), "optimizer": {"lr": 1e-3}, "epoch": 3}, path)
    return path


def test_export_and_load_give_the_same_features(checkpoint: Path, tmp_path: Path) -> None:
    exported = export_encoder(checkpoint, tmp_path / "encoders" / "densenet.pt", PROVENANCE)
    content = torch.load(exported, weights_only=True)
    assert content["provenance"] == PROVENANCE
    assert same(content["model"], densenet().state_dict())
    network = densenet(seed=1)
    report = load_pretrained(network, exported, minimum_share=1.0)
    assert report.share == 1
    assert (report.prefix, report.missing, report.unexpected, report.mismatched) == ("", [], [], [])
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(network.eval()(x), densenet().eval()(x))


def test_export_of_a_backbone_has_the_backbones_own_names(tmp_path: Path) -> None:
    encoder = SegResEncoder(spatial_dims=2, init_filters=8)
    network = EncoderWithHeads(PooledEncoder(encoder, out_channels=3))
    torch.save({"model": network.state_dict()}, tmp_path / "c.pt")
    whole = export_encoder(tmp_path / "c.pt", tmp_path / "whole.pt", {})
    backbone = export_encoder(tmp_path / "c.pt", tmp_path / "backbone.pt", {}, prefix="encoder.backbone.")
    assert list(read_state(whole)) == list(network.encoder.state_dict())
    assert same(read_state(backbone), encoder.state_dict())


def test_export_refuses_other_checkpoints_and_odd_provenance(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing under 'teacher\.'.*encoder\.features"):
        export_encoder(checkpoint, tmp_path / "e.pt", {}, prefix="teacher.")
    with pytest.raises(ValueError, match="JSON"):
        export_encoder(checkpoint, tmp_path / "e.pt", {"path": tmp_path})
    assert not (tmp_path / "e.pt").exists()


@pytest.mark.parametrize(
    ("stored", "prefix"),
    [
        (lambda state: {"model": {f"encoder.{k}": v for k, v in state.items()}}, "encoder."),
        (lambda state: {"model": {f"module.encoder.{k}": v for k, v in state.items()}}, "encoder."),
        (lambda state: {"encoder": dict(state), "provenance": {}}, ""),
        (lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}, ""),
        (lambda state: {f"backbone.{k}": v for k, v in state.items()}, "backbone."),
        (lambda state: {f"a.b.{k}": v for k, v in state.items()}, "a.b."),
        (dict, ""),
    ],
)
def test_prefixes_are_found(tmp_path: Path, stored: object, prefix: str) -> None:
    torch.save(stored(densenet().state_dict()), tmp_path / "w.pt")
    network = densenet(seed=1)
    report = load_pretrained(network, tmp_path / "w.pt")
    assert report.prefix == prefix
    assert report.share == 1
    assert same(network.state_dict(), densenet().state_dict())


def test_heads_of_the_file_are_unused_and_heads_of_the_network_missing(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        report = load_pretrained(densenet(seed=1), checkpoint)
    assert report.unexpected == ["heads.distance.weight", "heads.distance.bias"]
    assert "unused in the file: 2: heads.distance.weight" in caplog.text
    torch.save(densenet().state_dict(), tmp_path / "plain.pt")
    network = student(seed=1)
    before = network.heads.distance.weight.clone()
    report = load_pretrained(network, tmp_path / "plain.pt")
    assert report.missing == ["heads.distance.weight", "heads.distance.bias"]
    assert same(network.encoder.state_dict(), densenet().state_dict())
    assert torch.equal(network.heads.distance.weight, before)


def test_two_places_that_fit_alike_need_a_prefix(tmp_path: Path) -> None:
    both = {"student": densenet(1).state_dict(), "teacher": densenet(2).state_dict()}
    torch.save({f"{who}.{k}": v for who, state in both.items() for k, v in state.items()}, tmp_path / "w.pt")
    network = densenet()
    with pytest.raises(ValueError, match=r"several places \(file 'student\.', file 'teacher\.'\): give prefix"):
        load_pretrained(network, tmp_path / "w.pt")
    load_pretrained(network, tmp_path / "w.pt", prefix="teacher.")
    assert same(network.state_dict(), densenet(2).state_dict())


def test_the_place_is_chosen_by_shape_too(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(3, 3), "b.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    assert load_pretrained(nn.Linear(2, 2, bias=False), tmp_path / "w.pt").prefix == "b."


def test_names_that_fit_as_they_are_win(tmp_path: Path) -> None:
    """The file's only layer would fit the inner one as well."""
    torch.save({"0.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2, bias=False)))
    assert load_pretrained(network, tmp_path / "w.pt", minimum_share=0.5).matched == ["0.weight"]


def test_a_wrong_file_raises_with_names_of_both_sides_and_changes_nothing(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3, 3), "layer.bias": torch.zeros(3)}, tmp_path / "w.pt")
    network, before = densenet(), densenet().state_dict()
    with pytest.raises(ValueError) as error:
        load_pretrained(network, tmp_path / "w.pt", minimum_share=0.0)
    for word in ("w.pt", "0.0%", "features.conv0.weight", "layer.weight", "minimum_share"):
        assert word in str(error.value)
    assert same(network.state_dict(), before)


def test_other_shapes_count_as_not_fitting(tmp_path: Path) -> None:
    other, network = densenet(1, out_channels=9), densenet()
    torch.save(other.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="under the minimum of 99"):
        load_pretrained(network, tmp_path / "w.pt", minimum_share=0.99)
    assert same(network.state_dict(), densenet().state_dict())
    report = load_pretrained(network, tmp_path / "w.pt")
    features = network.class_layers.out.in_features
    assert report.mismatched == [
        ("class_layers.out.weight", (9, features), (6, features)),
        ("class_layers.out.bias", (9,), (6,)),
    ]
    assert len(report.matched) == len(network.state_dict()) - 2
    assert report.share == pytest.approx(1 - 2 / len(network.state_dict()))
    assert f"class_layers.out.weight (file 9x{features}, network 6x{features})" in str(report)
    assert torch.equal(network.features.conv0.weight, other.features.conv0.weight)


def write_truncated(path: Path) -> None:
    torch.save(densenet().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_flipped(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_truncated, "is damaged"),
        (write_flipped, "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_text("not weights\n" * 20), "is damaged"),
        (lambda path: torch.save({"args": argparse.Namespace(a=1)}, path), "pickled argparse.Namespace"),
        (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "holds no state dict.*epoch, lr"),
        (lambda path: torch.save({"model": {}}, path), "holds no state dict"),
        (lambda path: torch.save(torch.zeros(2), path), "holds no state dict.*Tensor"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_cause(tmp_path: Path, write: object, message: str) -> None:
    path = tmp_path / "w.pt"
    write(path)
    with pytest.raises(ValueError, match=f"w.pt.*{message}|w.pt {message}"):
        load_pretrained(densenet(), path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_pretrained(densenet(), tmp_path / "none.pt")


def test_pretrained_in_a_config(tmp_path: Path) -> None:
    torch.save({"model": PooledEncoder(SegResEncoder(spatial_dims=2, init_filters=8)).state_dict()}, tmp_path / "e.pt")
    network = {"_target_": "SegResNetDS", "spatial_dims": 2, "init_filters": 8}
    config = {
        "_target_": "anatomy_ssl.weights.pretrained",
        "network": network,
        "path": str(tmp_path / "e.pt"),
        "module": "encoder",
    }
    built = ConfigParser({"net": config}).get_parsed_content("net")
    assert isinstance(built, SegResNetDS)
    expected = {k.removeprefix("backbone."): v for k, v in read_state(tmp_path / "e.pt").items()}
    assert same(built.encoder.state_dict(), expected)
    with pytest.raises(ValueError, match="under the minimum"):
        pretrained(SegResNetDS(spatial_dims=2, init_filters=8), tmp_path / "e.pt")
    with pytest.raises(ValueError, match=r"no part 'swinViT'.*encoder"):
        pretrained(SegResNetDS(spatial_dims=2, init_filters=8), tmp_path / "e.pt", module="swinViT")


@pytest.mark.parametrize("path", [None, ""])
def test_pretrained_without_a_path_changes_nothing(path: str | None) -> None:
    network = densenet()
    assert pretrained(network, path) is network
    assert same(network.state_dict(), densenet().state_dict())


def test_fingerprint_depends_on_content_alone() -> None:
    config = {"a": [1, 2.5, None], "b": {"c": True, "d": "ü"}}
    assert fingerprint(config) == fingerprint(dict(reversed(config.items())))
    assert fingerprint(config) == fingerprint(json.loads(json.dumps(config)))
    assert fingerprint({**config, "a": [1, 2.5, 0]}) != fingerprint(config)
    assert fingerprint([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # sha256 of "[]"
    for bad in ({1, 2}, float("nan"), torch.zeros(1)):
        with pytest.raises(ValueError, match="JSON"):
            fingerprint({"bad": bad})


def test_other_crops_than_in_training_are_refused(tmp_path: Path) -> None:
    """Embeddings of crops at another spacing would be plausible and wrong."""
    network = torch.nn.Linear(2, 2)
    atomic_save({"model": network.state_dict(), "provenance": {"crop_spacing": [6.0] * 3}}, tmp_path / "encoder.pt")
    pretrained(network, tmp_path / "encoder.pt", recipe={"crop_spacing": [6.0] * 3, "unknown": 1})
    with pytest.raises(ValueError, match=r"crop_spacing \[6.0, 6.0, 6.0\], this run has None: give --crop_spacing"):
        pretrained(network, tmp_path / "encoder.pt", recipe={"crop_spacing": None})
    atomic_save(network.state_dict(), tmp_path / "plain.pt")
    check_recipe(tmp_path / "plain.pt", {"crop_spacing": None})
