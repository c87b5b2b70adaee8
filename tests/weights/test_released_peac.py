"""The PEAC authors' checkpoints become encoder files with the features of plain references; others are refused."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from anatomy_ssl.networks import SwinEncoder, ViTGridEncoder
from anatomy_ssl.weights import import_released, inspect, load_pretrained, pretrained, read_state
from anatomy_ssl.weights.timm import to_timm
from tests.reference.swin import swin
from tests.reference.vit import vit
from tests.weights.networks import randomised, same, saved

ROOT = Path(__file__).parents[2]
State = dict[str, torch.Tensor]
SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
VIT = {"img_size": 32, "patch_size": 8, "hidden_size": 128, "mlp_dim": 48, "num_layers": 2, "num_heads": 2}
FULL_VIT = {
    "img_size": 224,
    "patch_size": 16,
    "num_layers": 2,
    "spatial_dims": 2,
    "qkv_bias": True,
    "class_token": True,
}
VIT |= {"spatial_dims": 2, "qkv_bias": True, "class_token": True, "norm_eps": 1e-6}


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Random weights; scales of norms around one."""
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=rng) * 0.2 + n.endswith("norm.weight") for n, s in shapes.items()}


def their_swin(seed: int = 0) -> State:
    """A small Swin as spec'd for the authors' files, with indices and masks, for images of 64 pixels."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (8, 3, 4, 4)}
    shapes |= {"patch_embed.proj.bias": (8,), "patch_embed.norm.weight": (8,), "patch_embed.norm.bias": (8,)}
    state: State = {}
    for stage, (c, heads) in enumerate([(8, 2), (16, 4)]):
        for number in range(2):
            block = f"layers.{stage}.blocks.{number}."
            layers = {"attn.qkv": (3 * c, c), "attn.proj": (c, c), "mlp.fc1": (4 * c, c), "mlp.fc2": (c, 4 * c)}
            for name, shape in {**layers, "norm1": (c,), "norm2": (c,)}.items():
                shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
            shapes[f"{block}attn.relative_position_bias_table"] = (49, heads)
            state[f"{block}attn.relative_position_index"] = index(4)
        state[f"layers.{stage}.blocks.1.attn_mask"] = torch.zeros(16 >> 2 * stage, 16, 16)
    shapes |= {"layers.0.downsample.norm.weight": (32,), "layers.0.downsample.norm.bias": (32,)}
    shapes |= {"layers.0.downsample.reduction.weight": (16, 32), "norm.weight": (16,), "norm.bias": (16,)}
    return drawn(shapes, seed) | state


def index(w: int) -> torch.Tensor:
    """Where the bias of each pair of a window's tokens is found: rows first."""
    places = [(r, c) for r in range(w) for c in range(w)]
    rows = [[(a - c + w - 1) * (2 * w - 1) + b - d + w - 1 for c, d in places] for a, b in places]
    return torch.tensor(rows)


def their_vit(seed: int = 0) -> State:
    """A small ViT in timm's layout, 4 x 4 patches."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 128), "pos_embed": (1, 17, 128)}
    shapes |= {"patch_embed.proj.weight": (128, 3, 8, 8), "patch_embed.proj.bias": (128,)}
    for number in range(2):
        layers = {"attn.qkv": (384, 128), "attn.proj": (128, 128), "mlp.fc1": (48, 128), "mlp.fc2": (128, 48)}
        for name, shape in {**layers, "norm1": (128,), "norm2": (128,)}.items():
            shapes |= {f"blocks.{number}.{name}.weight": shape, f"blocks.{number}.{name}.bias": shape[:1]}
    return drawn(shapes | {"norm.weight": (128,), "norm.bias": (128,)}, seed)


HEADS = {"head.weight": (4, 16), "head.bias": (4,), "bias": (4,), "decoder.0.weight": (12, 16, 1, 1)}
HEADS |= {"mlp.0.weight": (8, 16), "mlp_local.6.weight": (8, 8)}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def theirs(state: State, prefix: str = "swin_model.") -> State:
    """One branch: the encoder under its prefix, beside the heads."""
    return under(prefix, state) | drawn(HEADS)


def training(student: State, teacher: State | None) -> dict[str, Any]:
    """A file of a training: plain values and tensors beside the branches."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0]}]}
    return {"student": student, **({"teacher": teacher} if teacher else {}), "optimizer": optimizer, "epoch": 99}


LAYOUTS: dict[str, tuple[Callable[[State, State], Any], str | None, str | None]] = {
    "teacher": (lambda s, other: training(theirs(other), theirs(s)), None, "teacher"),
    "student": (lambda s, other: training(theirs(s), theirs(other)), "student", "student"),
    "student alone": (lambda s, other: training(theirs(s), None), None, "student"),
    "parallel": (lambda s, other: training(theirs(other), under("module.", theirs(s))), None, "teacher"),
    "no heads": (lambda s, other: training(under("swin_model.", other), under("swin_model.", s)), None, "teacher"),
    "plain": (lambda s, other: theirs(s), None, None),
    "no prefix": (lambda s, other: {"state_dict": theirs(s, "")}, None, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swin_features_are_those_of_the_paper(layout: str, tmp_path: Path) -> None:
    """On one grey channel, where the authors' network sees it three times; the record says what was taken."""
    make, which, branch = LAYOUTS[layout]
    state = their_swin()
    source = saved(make(state, their_swin(1)), tmp_path / "checkpoint.pth")
    path = import_released(source, tmp_path / "encoder.pt", "peac", which)
    ours = SwinEncoder(in_channels=1, **SWIN).eval()
    assert load_pretrained(ours, path, minimum_share=1.0).share == 1
    ours.load_state_dict(read_state(path), strict=True)  # indices included
    image = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = swin(image.expand(3, -1, -1), state, SWIN["depths"], SWIN["num_heads"], 4)
        torch.testing.assert_close(ours(image[None])[0].permute(1, 2, 0), expected, atol=1e-5, rtol=1e-5)
    record = inspect(path).provenance
    assert (record["method"], record.get("branch"), record["channels"], record["source_channels"]) == (
        ("peac", branch, 1, 3)
    )
    assert (record["spatial_dims"], record["cell_size"]) == (2, 8)
    assert record["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert record["left_out"] == ([] if layout == "no heads" else list(HEADS))


@pytest.mark.parametrize("prefix", ["", "vit_model.", "model.", "encoder.backbone."])
def test_vit_features_are_those_of_the_paper(prefix: str, tmp_path: Path) -> None:
    """With its class token, its positions and timm's epsilon."""
    state = their_vit()
    source = saved(training(theirs(their_vit(1), prefix), theirs(state, prefix)), tmp_path / "checkpoint.pth")
    path = import_released(source, tmp_path / "encoder.pt", "peac")
    ours = ViTGridEncoder(in_channels=1, **VIT).eval()
    assert load_pretrained(ours, path, minimum_share=1.0).share == 1
    image = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(2)) * 0.01  # epsilon matters
    with torch.no_grad():
        expected = vit(image.expand(3, -1, -1), state, 2)[1:]
        torch.testing.assert_close(ours(image[None])[0].flatten(1).T, expected, atol=1e-5, rtol=1e-5)
    record = inspect(path).provenance
    assert (record["grid_size"], record["cell_size"], record["norm_eps"]) == ([4, 4], 8, 1e-6)
    assert record["left_out"] == list(HEADS)


def test_three_channels_are_kept_on_request(tmp_path: Path) -> None:
    """Bit-equal, and other numbers are refused."""
    state = their_swin()
    source = saved(training(theirs(state), None), tmp_path / "c.pth")
    path = import_released(source, tmp_path / "encoder.pt", "peac", channels=3)
    stem = "patch_embed.proj.weight"
    assert torch.equal(read_state(path)[stem], state[stem])
    with pytest.raises(ValueError, match=r"c\.pth is for 3 channels and cannot be brought to 2: give 1 or 3"):
        import_released(source, tmp_path / "encoder.pt", "peac", channels=2)


def test_the_authors_swin_b(tmp_path: Path) -> None:
    """Names and shapes of the full size, in half precision to keep the file small; nothing but these is written."""
    with torch.device("meta"):
        own = SwinEncoder(in_channels=3).state_dict()
    names = {name.replace("mlp.linear", "mlp.fc"): tuple(t.shape) for name, t in own.items() if "_index" not in name}
    state = {f"swin_model.{name}": torch.zeros((), dtype=torch.half).expand(shape) for name, shape in names.items()}
    path = import_released(saved({"teacher": state}, tmp_path / "c.pth"), tmp_path / "encoder.pt", "peac")
    imported = read_state(path)
    assert set(imported) == set(own)
    assert sum(t.numel() for t in imported.values() if t.is_floating_point()) == 86_743_224 - 128 * 2 * 16
    assert (
        inspect(path)
        .provenance["network"]
        .startswith(
            "SwinEncoder(spatial_dims=2, in_channels=1, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], "
            "window_size=7, patch_size=4)"
        )
    )


def test_train_json_starts_from_it(tmp_path: Path) -> None:
    """The bundle's network, one channel, with the recipe compared; ViT's settings are those of docs/transfer.md."""
    parser = ConfigParser()
    parser.read_config(ROOT / "bundles" / "peac" / "configs" / "train.json")
    own = {name: value for name, value in parser["encoder"].items() if name != "_target_"}
    source = randomised(SwinEncoder(**{**own, "spatial_dims": 2, "in_channels": 3}))
    path = saved(training(theirs(to_timm(source.state_dict(), "original")), None), tmp_path / "c.pth")
    parser["pretrained"] = str(import_released(path, tmp_path / "encoder.pt", "peac"))
    encoder = parser.get_parsed_content("network_def").encoder.backbone.eval()
    image = torch.randn(1, 1, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image), source(image.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)
    page = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8")
    snippet = next(text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "class_token" in text)
    parser = ConfigParser({"encoder": {**yaml.safe_load(snippet)["encoder"], "num_layers": 2}})
    state = under("vit_model.", to_timm(randomised(ViTGridEncoder(in_channels=3, **FULL_VIT)).state_dict()))
    vit_file = import_released(saved({"teacher": state}, tmp_path / "vit.pth"), tmp_path / "vit.pt", "peac")
    network = parser.get_parsed_content("encoder")
    assert load_pretrained(network, vit_file, minimum_share=1.0).share == 1
    assert network.norm.eps == inspect(vit_file).provenance["norm_eps"]


def without(state: State, *names: str) -> State:
    return {key: tensor for key, tensor in state.items() if not key.endswith(names)}


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a missing tensor": (lambda: without(theirs(their_swin()), "0.attn.qkv.bias"), r"2 missing \(layers\.0\.blocks\.0"),
    "a missing table": (
        lambda: without(theirs(their_swin()), "layers.1.blocks.0.attn.relative_position_bias_table"),
        r"there is no layers\.1\.blocks\.0\.attn",
    ),
    "unknown under the prefix": (
        lambda: {**theirs(their_swin()), "swin_model.absolute_pos_embed": torch.zeros(1)},
        r"1 unknown \(absolute_pos_embed\)",
    ),
    "unknown without prefix": (lambda: {**their_swin(), "adapter.weight": torch.zeros(1)}, r"1 unknown \(adapter"),
    "another order of biases": (
        lambda: {n: t.T if n.endswith("index") else t for n, t in theirs(their_swin()).items()},
        r"another order of biases in layers\.0",
    ),
    "two networks": (
        lambda: under("student.", their_swin()) | under("teacher.", their_swin()),
        "holds 2 Swins or ViTs",
    ),
    "none": (lambda: drawn(HEADS), "holds 0 Swins or ViTs"),
    "no class position": (
        lambda: {**their_vit(), "pos_embed": torch.zeros(1, 16, 128)},
        "positions of 15 patches, which are no square",
    ),
    "heads of an unknown size": (
        lambda: to_timm(ViTGridEncoder(**{**VIT, "hidden_size": 96}, in_channels=3).state_dict()),
        "96 features, no multiple of 64",
    ),
    "a convolution in 3D": (
        lambda: {**their_swin(), "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4, 4)},
        "no 2D Swin or ViT",
    ),
    "objects": (
        lambda: {"teacher": theirs(their_swin()), "args": argparse.Namespace(lr=1)},
        r"argparse\.Namespace.*torch\.save\(model",
    ),
    "an array": (lambda: {"teacher": theirs(their_swin()), "loss": np.zeros(2)}, r"pickled numpy.*torch\.save\(model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_files_are_refused(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    source = saved(make(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message) as error:
        import_released(source, tmp_path / "encoder.pt", "peac")
    assert str(source) in str(error.value)
    assert not (tmp_path / "encoder.pt").exists()


def test_a_branch_that_is_not_there_is_refused(tmp_path: Path) -> None:
    source = saved(training(theirs(their_swin()), None), tmp_path / "popar.pth")
    with pytest.raises(ValueError, match=r"popar\.pth has no teacher, but student"):
        import_released(source, tmp_path / "e.pt", "peac", "teacher")
    with pytest.raises(ValueError, match="which is teacher or student, not 'ema'"):
        import_released(source, tmp_path / "e.pt", "peac", "ema")
    with pytest.raises(ValueError, match="has no student, but one network alone"):
        import_released(saved(their_swin(), tmp_path / "plain.pth"), tmp_path / "e.pt", "peac", "student")
    with pytest.raises(ValueError, match="leave which and channels out"):
        import_released(source, tmp_path / "e.pt", "isimed", channels=1)


def test_a_config_reads_such_files_by_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`pretrained` takes the teacher of the authors' file as it is; without the key it names what is there."""
    source = saved(training(theirs(their_swin(1)), theirs(their_swin())), tmp_path / "c.pth")
    imported = SwinEncoder(in_channels=1, **SWIN)
    load_pretrained(imported, import_released(source, tmp_path / "encoder.pt", "peac"))
    recipe = {"spatial_dims": 2}
    network = pretrained(SwinEncoder(in_channels=1, **SWIN), source, inflate=True, key="teacher", recipe=recipe)
    assert same(network.state_dict(), imported.state_dict())
    fresh = randomised(SwinEncoder(in_channels=1, **SWIN))
    with pytest.raises(ValueError, match=r"holds no state dict.*student, teacher.*give the key"):
        pretrained(fresh, source)
    with pytest.raises(ValueError, match=r"no state dict under 'ema', but student, teacher"):
        pretrained(fresh, source, key="ema")
