"""Weights go where they belong, with a report; a file that does not fit is refused and changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import SegResNet, SegResNetDS, UNet, ViT
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn

from anatomy_ssl.data.atomic import atomic_save
from anatomy_ssl.networks import PooledEncoder, SegResNetEncoder
from anatomy_ssl.networks.encoders import UNetEncoder
from anatomy_ssl.weights import check_recipe, load_pretrained, pretrained, read_state
from tests.weights.networks import densenet, learned, same, saved, student

State = dict[str, torch.Tensor]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Training checkpoint of `student(0)`."""
    return saved({"model": student().state_dict(), "optimizer": {"lr": 1e-3}, "epoch": 3}, tmp_path / "checkpoint.pt")


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
def test_prefixes_are_found(tmp_path: Path, stored: Callable[[State], Any], prefix: str) -> None:
    path = saved(stored(densenet().state_dict()), tmp_path / "w.pt")
    network = densenet(seed=1)
    report = load_pretrained(network, path)
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
    network = student(seed=1)
    before = network.heads.distance.weight.clone()
    report = load_pretrained(network, saved(densenet(), tmp_path / "plain.pt"))
    assert report.missing == ["heads.distance.weight", "heads.distance.bias"]
    assert same(network.encoder.state_dict(), densenet().state_dict())
    assert torch.equal(network.heads.distance.weight, before)


def test_two_places_that_fit_alike_need_a_prefix(tmp_path: Path) -> None:
    both = {"student": densenet(1).state_dict(), "teacher": densenet(2).state_dict()}
    path = saved({f"{who}.{k}": v for who, state in both.items() for k, v in state.items()}, tmp_path / "w.pt")
    network = densenet()
    with pytest.raises(ValueError, match=r"several places \(file 'student\.', file 'teacher\.'\): give prefix"):
        load_pretrained(network, path)
    load_pretrained(network, path, prefix="teacher.")
    assert same(network.state_dict(), densenet(2).state_dict())


def test_the_place_is_chosen_by_shape_too(tmp_path: Path) -> None:
    path = saved({"a.weight": torch.ones(3, 3), "b.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    assert load_pretrained(nn.Linear(2, 2, bias=False), path).prefix == "b."


def test_names_that_fit_as_they_are_win(tmp_path: Path) -> None:
    """The file's only layer would fit the inner one as well."""
    path = saved({"0.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2, bias=False)))
    assert load_pretrained(network, path, minimum_share=0.5).matched == ["0.weight"]


def without(state: State, *parts: str) -> State:
    """A state dict without the tensors whose names start so."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(parts)}


def half_of(state: State) -> State:
    """Every second tensor, the first among them."""
    return {name: state[name] for name in [n for n in state if "num_batches" not in n][::2]}


WRONG: dict[str, tuple[Callable[[State], Any], dict[str, Any], str]] = {
    "wrong prefix": (lambda s: {f"net.{k}": v for k, v in s.items()}, {"prefix": "encoder."}, "fits 0.0%"),
    "no such nesting": (lambda s: {"model": {f"a.{k}.b": v for k, v in s.items()}}, {}, "fits 0.0%"),
    "nested twice": (lambda s: {"model": {"encoder": dict(s)}}, {}, "holds no state dict"),
    "module kept": (lambda s: {f"my.module.{k}": v for k, v in s.items()}, {"prefix": "module."}, "fits 0.0%"),
    "missing stem": (lambda s: without(s, "features.conv0"), {}, "input layer features.conv0.weight"),
    "other input channels": (
        lambda s: densenet(channels=4).state_dict(),
        {},
        r"input layer features.conv0.weight \(file 8x4x7x7, network 8x1x7x7\): give inflate",
    ),
    "other channels": (lambda s: {k: v.repeat([2] * v.ndim) if v.ndim else v for k, v in s.items()}, {}, "fits 0.0%"),
    "half of the layers": (lambda s: half_of(s), {}, "fits 50.0%"),
    "a block less": (lambda s: without(s, "features.denseblock3", "features.transition3"), {}, "fits 77.3%"),
    "half, of the file": (lambda s: half_of(s), {"share_of": "file"}, "takes 50.0% of the encoder"),
    "a block less, of the file": (
        lambda s: without(s, "features.denseblock3", "features.transition3"),
        {"share_of": "file"},
        "takes 77.3% of the encoder",
    ),
    "counters only": (lambda s: {k: v for k, v in s.items() if "num_batches" in k}, {"minimum_share": 0}, "fits 0.0%"),
    "another network": (lambda s: {"layer.weight": torch.zeros(3, 3)}, {"minimum_share": 0}, "fits 0.0%"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mismatch_never_passes(case: str, tmp_path: Path) -> None:
    """And nothing of the file is in the network afterwards."""
    content, options, message = WRONG[case]
    path = saved(content(densenet(1).state_dict()), tmp_path / "w.pt")
    network = densenet()
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(network, path, **options)
    assert str(path) in str(error.value)
    assert same(network.state_dict(), densenet().state_dict())


def test_the_error_has_names_of_both_sides(tmp_path: Path) -> None:
    path = saved({"layer.weight": torch.zeros(3, 3), "layer.bias": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(ValueError) as error:
        load_pretrained(densenet(), path)
    for word in ("w.pt", "0.0%", "missing in the file: 66: features.conv0.weight", "unused", "layer.weight", "prefix"):
        assert word in str(error.value)


def test_a_new_input_layer_has_to_be_asked_for(tmp_path: Path) -> None:
    path = saved(densenet(1, channels=4), tmp_path / "w.pt")
    network, before = densenet(), densenet().features.conv0.weight
    report = load_pretrained(network, path, allow_new_input=True)
    assert report.mismatched == [("features.conv0.weight", (8, 4, 7, 7), (8, 1, 7, 7))]
    assert torch.equal(network.features.conv0.weight, before)
    assert torch.equal(network.features.norm0.weight, densenet(1).features.norm0.weight)


def test_other_shapes_count_as_not_fitting(tmp_path: Path) -> None:
    """Another number of outputs is within the default share, and reported."""
    other, network = densenet(1, out_channels=9), densenet()
    path = saved(other, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="under the minimum of 99"):
        load_pretrained(network, path, minimum_share=0.99)
    assert same(network.state_dict(), densenet().state_dict())
    report = load_pretrained(network, path)
    features = network.class_layers.out.in_features
    assert report.mismatched == [
        ("class_layers.out.weight", (9, features), (6, features)),
        ("class_layers.out.bias", (9,), (6,)),
    ]
    assert report.matched == learned(network)[:-2]
    assert report.share == pytest.approx(1 - 2 / len(learned(network)))
    assert f"class_layers.out.weight (file 9x{features}, network 6x{features})" in str(report)
    assert torch.equal(network.features.conv0.weight, other.features.conv0.weight)


@pytest.mark.parametrize("options", [{"share_of": "half"}, {"minimum_share": 1.5}, {"minimum_share": -0.1}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share_of is network or file"):
        load_pretrained(densenet(), saved(densenet(), tmp_path / "w.pt"), **options)


def swin(window: int, dims: int = 3) -> SwinTransformer:
    """Two stages."""
    shape = {"depths": [1, 1], "num_heads": [1, 2], "spatial_dims": dims}
    return SwinTransformer(1, 8, [window] * dims, [2] * dims, **shape)


def test_counters_go_along_and_index_tables_stay(tmp_path: Path) -> None:
    """Neither counts: they are of the architecture and the number of steps, not learned."""
    network = densenet(1)
    network.features.norm0.num_batches_tracked.fill_(7)
    state = network.state_dict()
    other = densenet()
    report = load_pretrained(other, saved(network, tmp_path / "w.pt"))
    assert int(other.features.norm0.num_batches_tracked) == 7
    report = load_pretrained(densenet(), saved({k: state[k] for k in learned(network)}, tmp_path / "old.pt"))
    assert report.share == 1
    assert not [name for name in report.missing + report.matched if "num_batches" in name]
    large, small = swin(5), swin(3)
    index = small.layers1[0].blocks[0].attn.relative_position_index.clone()
    report = load_pretrained(small, saved(large, tmp_path / "s.pt"), interpolate=True)
    assert torch.equal(small.layers1[0].blocks[0].attn.relative_position_index, index)
    assert report.share == 1
    assert [name for name, _, _ in report.reshaped] == [n for n in small.state_dict() if n.endswith("bias_table")]


def test_an_index_table_of_the_same_size_stays_too(tmp_path: Path) -> None:
    """Windows of 4 x 4 and 2 x 8 have as many tokens, and look biases up in tables of other sizes."""
    square, wide = (SwinTransformer(1, 8, w, [2, 2], [1], [1], spatial_dims=2) for w in ([4, 4], [2, 8]))
    index = wide.layers1[0].blocks[0].attn.relative_position_index.clone()
    report = load_pretrained(wide, saved(square, tmp_path / "w.pt"), interpolate=True)
    assert [(there, here) for _, there, here in report.reshaped] == [((49, 1), (45, 1))]
    assert torch.equal(wide.layers1[0].blocks[0].attn.relative_position_index, index)


def test_the_unused_part_of_a_vit_counts_for_nothing(tmp_path: Path) -> None:
    """MONAI 1.5.1 creates more of the cross-attention that ViT never calls than 1.6.1: files go both ways."""
    source, network = (ViT(1, [32, 32], [16, 16], 12, 12, 2, 2, spatial_dims=2) for _ in range(2))
    state = {name: tensor for name, tensor in source.state_dict().items() if "cross_attn" not in name}
    more = {f"blocks.{block}.cross_attn.{name}.weight": torch.zeros(12, 12) for block in (0, 1) for name in "abcde"}
    for content in (state, {**state, **more}):
        assert load_pretrained(network, saved(content, tmp_path / "w.pt"), minimum_share=1.0).unexpected == []
        assert torch.equal(network.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)


def test_tables_that_are_read_in_another_order_are_refused(tmp_path: Path) -> None:
    """Windows of 2 x 4 and 4 x 2 have tables of one size."""
    wide, high = (SwinTransformer(1, 8, w, [2, 2], [1], [1], spatial_dims=2) for w in ([2, 4], [4, 2]))
    with pytest.raises(ValueError, match="relative_position_index has another order"):
        load_pretrained(high, saved(wide, tmp_path / "w.pt"))


def test_half_precision_becomes_the_networks(tmp_path: Path) -> None:
    path = saved(
        {k: v.half() if v.is_floating_point() else v for k, v in densenet(1).state_dict().items()}, tmp_path / "w"
    )
    network = densenet()
    load_pretrained(network, path)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    torch.testing.assert_close(network.features.conv0.weight, densenet(1).features.conv0.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["segresnet", "unet"])
def test_share_of_the_file_asks_for_a_whole_encoder(kind: str, tmp_path: Path) -> None:
    """The decoder may be missing, a layer between or a whole part may not."""
    if kind == "segresnet":
        encoder, target = SegResNetEncoder(init_filters=8), SegResNet(init_filters=8)
        cuts = ("down_layers.1", "down_layers.2"), ("down_layers.3",)
    else:
        shape = {"spatial_dims": 3, "in_channels": 1, "channels": [4, 8, 16, 32], "strides": [2, 2, 2]}
        encoder, target = UNetEncoder(**shape), UNet(**shape, out_channels=2)
        deep = "model.1.submodule.1.submodule"
        cuts = ("model.1.submodule.0",), (f"{deep}.0",), (f"{deep}.1",), ("model.1.submodule.1",)
    state = encoder.state_dict()
    assert load_pretrained(target, saved(state, tmp_path / "w.pt"), share_of="file", minimum_share=1.0).missing
    for cut in cuts:
        with pytest.raises(ValueError, match=f"{type(target).__name__} takes"):
            load_pretrained(target, saved(without(state, *cut), tmp_path / "c.pt"), share_of="file")
    with pytest.raises(ValueError, match="fits"):
        load_pretrained(target, tmp_path / "w.pt", share_of="network")


def test_a_smaller_unet_is_not_taken_for_an_encoder(tmp_path: Path) -> None:
    """Its bottom layer has a name that a deeper network has not."""
    small = UNetEncoder(spatial_dims=2, in_channels=1, channels=[4, 8, 16], strides=[2, 2])
    large = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=[4, 8, 16, 32, 64], strides=[2] * 4)
    with pytest.raises(ValueError, match=r"takes 33.3%.*under the minimum"):
        load_pretrained(large, saved(small, tmp_path / "w.pt"), share_of="file")


def test_a_deeper_network_is_not_taken_for_a_shallower_one(tmp_path: Path) -> None:
    """Every tensor of the shallower one has a counterpart of its name and shape, with blocks between that are lost."""
    shape = {"hidden_size": 12, "mlp_dim": 12, "num_heads": 2, "spatial_dims": 2}
    large, small = (ViT(1, [32, 32], [16, 16], num_layers=layers, **shape) for layers in (4, 2))
    path = saved(PooledEncoder(large, 3), tmp_path / "w.pt")
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    with pytest.raises(ValueError, match=r"22 of them layers that the network lacks, fit under 'backbone\.' \(55.1%"):
        load_pretrained(small, path)
    assert same(small.state_dict(), before)
    report = load_pretrained(small, path, minimum_share=0.5)
    assert {name.split(".")[2] for name in report.surplus} == {"2", "3"}
    # a whole network's decoder may be left over, also where all is in one part
    shape = {"spatial_dims": 2, "in_channels": 1, "channels": [4, 8, 16], "strides": [2, 2]}
    report = load_pretrained(UNetEncoder(**shape), saved(UNet(**shape, out_channels=2), tmp_path / "u.pt"))
    assert (report.share, bool(report.unexpected)) == (1, True)


def test_a_prefix_may_lack_its_dot(tmp_path: Path) -> None:
    path = saved({f"encoder.{name}": tensor for name, tensor in densenet(1).state_dict().items()}, tmp_path / "w.pt")
    network = densenet()
    assert load_pretrained(network, path, prefix="encoder").share == 1
    assert same(network.state_dict(), densenet(1).state_dict())


def test_pretrained_in_a_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = PooledEncoder(SegResEncoder(spatial_dims=2, init_filters=8)).state_dict()
    path = saved({"model": state}, tmp_path / "e.pt")
    network = {"_target_": "SegResNetDS", "spatial_dims": 2, "init_filters": 8}
    config = {"_target_": "anatomy_ssl.weights.pretrained", "network": network, "path": str(path), "module": "encoder"}
    built = ConfigParser({"net": config}).get_parsed_content("net")
    assert isinstance(built, SegResNetDS)
    expected = {k.removeprefix("backbone."): v for k, v in read_state(path).items()}
    assert same(built.encoder.state_dict(), expected)
    with pytest.raises(ValueError, match="under the minimum"):
        pretrained(SegResNetDS(spatial_dims=2, init_filters=8), path)
    with pytest.raises(ValueError, match=r"no part 'swinViT'.*encoder"):
        pretrained(SegResNetDS(spatial_dims=2, init_filters=8), path, module="swinViT")
    # MONAI buries what is raised at construction
    with pytest.raises(RuntimeError):
        ConfigParser({"net": {**config, "module": "swinViT"}}).get_parsed_content("net")
    assert caplog.messages[-1].startswith("SegResNetDS has no part 'swinViT'")


@pytest.mark.parametrize("path", [None, ""])
def test_pretrained_without_a_path_changes_nothing(path: str | None) -> None:
    network = densenet()
    assert pretrained(network, path) is network
    assert same(network.state_dict(), densenet().state_dict())


def test_other_crops_than_in_training_are_refused(tmp_path: Path) -> None:
    """Embeddings of crops at another spacing would be plausible and wrong."""
    network = torch.nn.Linear(2, 2)
    atomic_save({"model": network.state_dict(), "provenance": {"crop_spacing": [6.0] * 3}}, tmp_path / "encoder.pt")
    pretrained(network, tmp_path / "encoder.pt", recipe={"crop_spacing": [6.0] * 3, "unknown": 1})
    with pytest.raises(ValueError, match=r"crop_spacing \[6.0, 6.0, 6.0\], this run has None: give --crop_spacing"):
        pretrained(network, tmp_path / "encoder.pt", recipe={"crop_spacing": None})
    check_recipe(saved(network, tmp_path / "plain.pt"), {"crop_spacing": None})


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda weight: weight.fill_(torch.nan), "NaN or infinite"),
        (lambda weight: weight.flatten()[3:4].fill_(torch.inf) is None or weight, "NaN or infinite"),
        (lambda weight: weight.double() * 1e300, "NaN or infinite"),
        (lambda weight: (100 * weight).to(torch.int8), "int8, network float32"),
        (lambda weight: weight > 0, "bool, network float32"),
    ],
    ids=["nan", "inf", "too large", "integer", "bool"],
)
@pytest.mark.parametrize("options", [{}, {"inflate": True}], ids=["as it is", "inflated"])
def test_values_that_are_no_weights_are_refused(
    spoil: Callable[[torch.Tensor], torch.Tensor], cause: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """With the tensor's name; by shape all of them fit."""
    state = densenet(1).state_dict()
    state["features.conv0.weight"] = spoil(state["features.conv0.weight"].clone() + 1)
    path, network = saved(state, tmp_path / "w.pt"), densenet(channels=2 if options else 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=rf"w\.pt has weights that.*: features\.conv0\.weight \({cause}\): train"):
        load_pretrained(network, path, **options)
    assert same(network.state_dict(), before)


def test_what_is_not_loaded_may_be_anything(tmp_path: Path) -> None:
    """Heads of the file; counters, which are integers; and a mask that is infinite in the network itself."""
    network, other = student(1), densenet()
    network.heads.distance.weight.data.fill_(torch.nan)
    assert load_pretrained(other, saved(network, tmp_path / "w.pt")).share == 1
    for module in (network.encoder, other):
        module.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    assert load_pretrained(other, saved(network.encoder, tmp_path / "m.pt")).share == 1
    network.encoder.mask[0, 0] = torch.nan
    with pytest.raises(ValueError, match="mask"):
        load_pretrained(other, saved(network.encoder, tmp_path / "m.pt"))


def test_unused_tensors_beside_the_loaded_ones_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SwinUNETR's `use_v2` adds convolutions that the network without it lacks; heads outside the part are none."""
    shape = {"in_chans": 1, "embed_dim": 6, "window_size": [2, 2], "patch_size": [2, 2], "spatial_dims": 2}
    shape |= {"depths": [1] * 4, "num_heads": [1] * 4}
    old, new = SwinTransformer(**shape), SwinTransformer(**shape, use_v2=True)
    path = saved(PooledEncoder(new, 3), tmp_path / "v2.pt")
    with caplog.at_level(logging.INFO):
        report = load_pretrained(old, path)
        assert report.share == 1
        assert report.unused
        assert all(name.startswith("backbone.layers") for name in report.unused)
        assert "unused in the file" in caplog.text
        report = load_pretrained(new, path)
        assert (report.unused, [name.split(".")[0] for name in report.unexpected]) == ([], ["projection"] * 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_words_of_the_command_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`--pretrained_inflate false` arrives as a string, which is true."""
    path = saved(densenet(1), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="input layer"):
        pretrained(densenet(channels=2), path, inflate="false", interpolate="False", allow_new_input="false")
    first = "features.conv0.weight"
    inflated = pretrained(densenet(channels=2), path, inflate="true").state_dict()[first]
    torch.testing.assert_close(inflated.sum(1, keepdim=True), densenet(1).state_dict()[first])
    pretrained(densenet(channels=2), path, allow_new_input="true")
    with pytest.raises(ValueError, match="interpolate 'yes' is neither true nor false"):
        pretrained(densenet(), path, interpolate="yes")
    assert caplog.messages[-1] == "interpolate 'yes' is neither true nor false"
