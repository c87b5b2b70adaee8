"""Encoders in nnU-Net's networks: what maps gives the same features there, what does not is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from anatomy_ssl.__main__ import main
from anatomy_ssl.networks.encoders import PooledEncoder
from anatomy_ssl.weights.nnunet import export_nnunet, plan_architecture

pytest.importorskip("dynamic_network_architectures", reason="needs the extra nnunet")
CONFIGS = Path(__file__).parents[2] / "bundles" / "isimed" / "configs"

# thick slices: nnU-Net puts them first and leaves their axis out of the first kernel and stride
KWARGS: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_blocks_per_stage": [1, 2, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
NETWORK = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


@pytest.fixture
def write_plans(tmp_path: Path):
    """Write a plans file and return its path; arguments change `KWARGS`."""

    def write(name: str = "plans.json", network: str = NETWORK, transpose: Any = (0, 1, 2), **changes: Any) -> Path:
        architecture = {
            "network_class_name": network,
            "arch_kwargs": {**KWARGS, **changes},
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
        configurations = {
            "3d_fullres": {"patch_size": [8, 16, 16], "spacing": [3.0, 1.0, 1.0], "architecture": architecture},
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [4.0, 2.0, 2.0]},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        }
        content = {"plans_name": "Tiny", "transpose_forward": list(transpose), "configurations": configurations}
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


@pytest.fixture
def pretrain(tmp_path: Path):
    """Build the encoder of `encoder_resenc.yaml` for a plan, write its file; returns both."""

    def build(plans: Path, record: bool = True, **changes: Any) -> tuple[PooledEncoder, Path]:
        torch.manual_seed(1)
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / name) for name in ("pretrain.yaml", "encoder_resenc.yaml")])
        parser.update({"plans": str(plans), "embedding_size": 5, **changes})
        encoder = parser.get_parsed_content("encoder")
        provenance = {"method": "isimed", **(parser.get_parsed_content("recipe") if record else {})}
        torch.save({"model": encoder.state_dict(), "provenance": provenance}, tmp_path / "encoder.pt")
        return encoder, tmp_path / "encoder.pt"

    return build


def plan_network(plans: Path, channels: int = 1) -> torch.nn.Module:
    """The plan's network as nnU-Net builds it, for three labels."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    kwargs = json.loads(plans.read_text())["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    layers = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    return ResidualEncoderUNet(input_channels=channels, num_classes=3, deep_supervision=True, **{**kwargs, **layers})


def load(network: torch.nn.Module, path: Path) -> torch.nn.Module:
    """As nnU-Net does: all that there is, but the segmentation layers; nothing but these may lack."""
    weights = torch.load(path, weights_only=True)["network_weights"]
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert missing and all(".seg_layers." in name for name in missing)
    assert not unexpected
    return network.eval()


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_features_are_the_same_in_nnunet(write_plans, pretrain, tmp_path: Path, transpose: tuple[int, ...]) -> None:
    """The same volume, turned as nnU-Net turns it, gives the same features at every stage."""
    plans = write_plans(transpose=transpose)
    encoder, file = pretrain(plans)
    report = export_nnunet(file, tmp_path / "weights.pth", plans, input_channels=1)
    network = load(plan_network(plans), tmp_path / "weights.pth").double()

    volume = torch.rand(2, 1, 16, 20, 12, dtype=torch.float64)  # R, A, S
    theirs = volume.permute(0, 1, 4, 3, 2).permute(0, 1, *(2 + axis for axis in transpose))  # as SimpleITK, then
    back = [2 + transpose.index(2 - axis) for axis in range(3)]
    encoder.double().backbone.return_skips = True
    with torch.no_grad():
        for ours, found in zip(encoder.backbone(volume), network.encoder(theirs), strict=True):
            torch.testing.assert_close(found.permute(0, 1, *back), ours, atol=1e-6, rtol=1e-6)
    assert report.share == 1
    assert [name for name in report.unexpected if name.startswith("backbone.")] == []


def test_the_rest_is_nnunets_random_start(write_plans, pretrain, tmp_path: Path) -> None:
    """The decoder depends on the seed alone, the caller's random numbers do not move, and the file says what it is."""
    plans = write_plans()
    _, file = pretrain(plans, crop_spacing=[2.0, 2.0, 2.0])
    contents, state = [], torch.random.get_rng_state()
    for seed in (0, 0, 1):
        export_nnunet(file, tmp_path / "weights.pth", plans, input_channels=1, seed=seed)
        contents.append(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert torch.equal(state, torch.random.get_rng_state())
    first, second, other = (content["network_weights"] for content in contents)
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], other[name])}
    assert changed == {"decoder"}
    assert all(torch.equal(first[name], other[name]) for name in first if ".encoder." in name)
    record = contents[0]["provenance"]
    assert (record["random"], record["seed"]) == ("decoder", 0)
    assert record["patch_size"] == [16, 16, 8]  # R, A, S
    assert record["spacing"] == [1.0, 1.0, 3.0]
    assert record["encoder"]["crop_spacing"] == [2.0, 2.0, 2.0]


WRONG = {
    "wider": ({"features_per_stage": [4, 6, 10]}, r"stages\.2\.blocks\.0\.conv1\.conv\.weight \(file 8x"),
    "plan deeper in a stage": ({"n_blocks_per_stage": [1, 3, 1]}, r"missing in the file: \d+: stages\.1\.blocks\.2"),
    "file deeper in a stage": ({"n_blocks_per_stage": [1, 1, 1]}, r"the plan lacks \(backbone\.stages\.1\.blocks\.1"),
    "kernels of other axes": (
        {"kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]]},
        r"stem\.convs\.0\.conv\.weight \(file",
    ),
    "strides": ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, r"its strides are .*\[2, 2, 1\].*the plan's"),
    "no bias": ({"conv_bias": False}, r"the plan lacks \(backbone\.stem\.convs\.0\.conv\.bias"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_plan_is_refused(write_plans, pretrain, tmp_path: Path, name: str) -> None:
    """With the layers that differ; nothing is written."""
    changes, message = WRONG[name]
    _, file = pretrain(write_plans())
    with pytest.raises(ValueError, match=message) as refusal:
        export_nnunet(file, tmp_path / "weights.pth", write_plans("other.json", **changes), input_channels=1)
    assert "other.json" in str(refusal.value)
    assert "encoder_resenc.yaml" in str(refusal.value)
    assert not (tmp_path / "weights.pth").exists()


def test_strides_that_are_not_recorded_are_a_warning(write_plans, pretrain, tmp_path: Path, caplog) -> None:
    """No tensor shows them."""
    plans = write_plans()
    export_nnunet(pretrain(plans, record=False)[1], tmp_path / "weights.pth", plans, input_channels=1)
    assert "does not record its strides" in caplog.text


def test_other_encoders_are_refused(write_plans, tmp_path: Path) -> None:
    """A network of another kind; a file without weights."""
    torch.save({"model": torch.nn.Conv3d(1, 5, 3).state_dict()}, tmp_path / "encoder.pt")
    with pytest.raises(ValueError, match=r"fits 0\.0% of ResidualEncoder"):
        export_nnunet(tmp_path / "encoder.pt", tmp_path / "weights.pth", write_plans(), input_channels=1)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        export_nnunet(tmp_path / "none.pt", tmp_path / "weights.pth", write_plans(), input_channels=1)


def test_checkpoints_and_bare_backbones(write_plans, pretrain, tmp_path: Path) -> None:
    """A training checkpoint, an export of the backbone alone and encoder.pt give one file."""
    plans = write_plans()
    encoder, file = pretrain(plans)
    network = torch.nn.ModuleDict({"encoder": encoder, "head": torch.nn.Linear(5, 2)})
    torch.save({"model": network.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    torch.save({"model": encoder.backbone.state_dict()}, tmp_path / "backbone.pt")
    found = []
    for path in (file, tmp_path / "checkpoint.pt", tmp_path / "backbone.pt"):
        export_nnunet(path, tmp_path / "weights.pth", plans, input_channels=1)
        found.append(torch.load(tmp_path / "weights.pth", weights_only=True)["network_weights"])
    assert all(torch.equal(other[name], found[0][name]) for other in found[1:] for name in found[0])


def test_channels(write_plans, pretrain, tmp_path: Path) -> None:
    """Counted in the data set's description; one channel goes to several only on request, with the same response."""
    plans = write_plans()
    encoder, file = pretrain(plans)
    with pytest.raises(ValueError, match=r"no .*dataset\.json: give input_channels"):
        export_nnunet(file, tmp_path / "weights.pth", plans)
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}))
    with pytest.raises(ValueError, match=r"with 2 channel\(s\)(.|\n)*stem\.convs\.0\.conv\.weight \(file 4x1x"):
        export_nnunet(file, tmp_path / "weights.pth", plans)
    export_nnunet(file, tmp_path / "weights.pth", plans, inflate=True)
    network = load(plan_network(plans, channels=2), tmp_path / "weights.pth")
    volume = torch.rand(1, 1, 8, 16, 16)
    with torch.no_grad():
        ours = encoder.backbone.stem(volume.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(network.encoder.stem(volume.expand(-1, 2, -1, -1, -1)), ours, atol=1e-5, rtol=1e-5)


def test_lists_of_a_plan_without_nnunet(write_plans) -> None:
    """Axes here are R, A, S; a configuration takes over what it inherits."""
    shape = plan_architecture(write_plans(), "3d_lowres")
    assert shape["strides"] == [[1, 1, 1], [2, 2, 1], [2, 2, 2]]
    assert shape["kernel_sizes"][0] == [3, 3, 1]
    assert shape["n_blocks_per_stage"] == [1, 2, 1]
    assert plan_architecture(write_plans(transpose=(2, 0, 1)))["strides"][1] == [1, 2, 2]


def test_2d_plans_take_axial_slices_only(write_plans) -> None:
    flat = {"strides": [[1, 1], [2, 1], [2, 2]], "kernel_sizes": [[3, 3]] * 3, "conv_op": "torch.nn.Conv2d"}
    assert plan_architecture(write_plans(**flat))["strides"][1] == [1, 2]
    with pytest.raises(ValueError, match="slices that are not axial"):
        plan_architecture(write_plans(transpose=(1, 0, 2), **flat))


BAD_PLANS = {
    "no configuration": ({}, "2d", "has no configuration '2d'; it has 3d_fullres, 3d_lowres"),
    "cascade": ({}, "3d_cascade_fullres", "previous stage's labels"),
    "plain": ({"network": NETWORK.replace("ResidualEncoderUNet", "PlainConvUNet")}, "3d_fullres", "PlainConvUNet"),
    "a function": ({"conv_op": "os.system"}, "3d_fullres", "os.system for its network, which is no layer of torch.nn"),
    "no layer": ({"nonlin": "torch.nn.functional"}, "3d_fullres", "torch.nn.functional for its network"),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_plans_that_cannot_be_used(write_plans, name: str) -> None:
    """Named with what is wrong; nothing outside torch.nn is ever imported from a plan."""
    changes, configuration, message = BAD_PLANS[name]
    plans = write_plans(**changes)
    with pytest.raises(ValueError, match=message) as refusal:
        plan_architecture(plans, configuration)
    assert str(plans) in str(refusal.value)


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    for text, message in (("{", "no JSON file"), ("[]", "no JSON object"), ("{}", "is it a plans file")):
        (tmp_path / "plans.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            plan_architecture(tmp_path / "plans.json")
    with pytest.raises(FileNotFoundError, match="nnUNet_preprocessed"):
        plan_architecture(tmp_path / "none.json")


def test_command(write_plans, pretrain, tmp_path: Path, monkeypatch, capsys) -> None:
    """`python -m anatomy_ssl export-nnunet`."""
    plans, output = write_plans(), tmp_path / "weights.pth"
    given = ["export-nnunet", "--encoder", pretrain(plans)[1], "--plans", plans, "--output", output]
    inflated = ["--channels", 2, "--inflate", "false"]
    for further, code in (([], 2), (["--configuration", "2d"], 2), (inflated, 2), (["--channels", 1], 0)):
        monkeypatch.setattr(sys, "argv", ["anatomy_ssl", *map(str, given), *map(str, further)])
        assert main() == code
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 3
    assert f"wrote {output}" in captured.out
    load(plan_network(plans), output)


@pytest.mark.parametrize("compiled", [False, True])
def test_nnunet_itself_takes_the_file(write_plans, pretrain, tmp_path: Path, compiled: bool) -> None:
    """Its own loading accepts the file, for three labels here, and its encoder is ours then."""
    loading = pytest.importorskip("nnunetv2.run.load_pretrained_weights", reason="needs nnunetv2")
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plans = write_plans()
    encoder, file = pretrain(plans)
    export_nnunet(file, tmp_path / "weights.pth", plans, input_channels=1)
    entry = json.loads(plans.read_text())["configurations"]["3d_fullres"]["architecture"]
    arguments = (entry["network_class_name"], entry["arch_kwargs"], entry["_kw_requires_import"])
    network = get_network_from_plans(*arguments, input_channels=1, output_channels=3, deep_supervision=True)
    loading.load_pretrained_weights(torch.compile(network) if compiled else network, str(tmp_path / "weights.pth"))
    volume = torch.rand(1, 1, 12, 16, 20, dtype=torch.float64)
    encoder.double()
    network.double().eval()
    with torch.no_grad():
        ours = encoder.backbone(volume.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(network.encoder(volume)[-1], ours, atol=1e-6, rtol=1e-6)
        assert network(volume)[0].shape[:2] == (1, 3)
