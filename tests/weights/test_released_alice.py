"""The Alice authors' checkpoints become files with the features of a plain reference; others are refused."""

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

from anatomy_ssl.networks import HierarchicalTransformer
from anatomy_ssl.weights import import_released, inspect, load_pretrained, read_state
from tests.reference.nnformer import nnformer, random_state
from tests.weights.networks import saved

ROOT = Path(__file__).parents[2]
State = dict[str, torch.Tensor]
HEADS, WINDOWS = (1, 2, 4, 8), (4, 4, 8, 4)
SMALL: dict[str, Any] = {"embed_dim": 12, "num_heads": HEADS, "window_size": WINDOWS}
HEAD = {"head.mlp.0.weight": (4, 96), "head.last_layer.weight_g": (8, 1), "head.mlp3.weight": (96, 96)}
DROPPED = ["model_down.mask_token", "final.1.up.weight", "final.1.up.bias", "final.2.up.weight", "final.2.up.bias"]


def theirs(released: bool = True, seed: int = 0) -> State:
    """The backbone as specified for the authors' files, small, for images of 64 voxels."""
    return random_state(12, HEADS, WINDOWS, released, seed)


def branch(state: State, prefix: str = "module.") -> State:
    """Backbone and heads."""
    heads = {f"{prefix}{name}": torch.zeros(shape) for name, shape in HEAD.items()}
    return {f"{prefix}backbone.{name}": tensor for name, tensor in state.items()} | heads


def training(student: State, teacher: State) -> dict[str, Any]:
    """A file of a training, with the namespace of its command line."""
    args = argparse.Namespace(lr=5e-4, output_dir="out", epochs=100)
    loss = {"center": torch.zeros(1, 8)}
    rest = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 99, "args": args, "alice_loss": loss}
    return {"student": student, "teacher": teacher, **rest}


def without(state: State, *names: str) -> State:
    return {key: tensor for key, tensor in state.items() if not any(name in key for name in names)}


def maps(network: HierarchicalTransformer, image: torch.Tensor) -> State:
    """By the names of the reference."""
    stages = network.encode(image[None])
    first = network.first_decoder(stages)
    found = {f"stage {stage}": features[0] for stage, features in enumerate(stages)}
    return {**found, "decoder 0": first[0], "restored": network.restore(stages, first)[0]}


@pytest.mark.parametrize("released", [True, False])
def test_features_are_those_of_the_specification(released: bool, tmp_path: Path) -> None:
    """The teacher's, at 64 voxels, in single precision; the record says what was taken, left out and is not there."""
    state = theirs(released)
    source = saved(training(branch(theirs(released, 1)), branch(state, "")), tmp_path / "checkpoint.pth")
    path = import_released(source, tmp_path / "encoder.pt", "alice")
    network = HierarchicalTransformer(**SMALL, released=released).eval()
    assert load_pretrained(network, path, minimum_share=1.0).share == 1
    network.load_state_dict(read_state(path), strict=True)  # tables of indices and positions included
    image = torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = nnformer(image, state, HEADS, WINDOWS, released)
        for name, features in maps(network, image).items():
            torch.testing.assert_close(features, expected[name], atol=1e-5, rtol=1e-5, msg=name)
    record = inspect(path).provenance
    assert (record["method"], record["branch"], record["channels"]) == ("alice", "teacher", 1)
    assert record["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert sorted(record["left_out"]) == sorted([*(f"backbone.{name}" for name in DROPPED), *HEAD])
    assert record["position_embedding"].startswith("zeros")
    assert f"img_size=[64, 64, 64], released={released}" in record["network"]


def test_the_order_of_biases_matters(tmp_path: Path) -> None:
    """A network of the other order would give other features; it does not take the file."""
    state = theirs()
    source = saved(branch(state), tmp_path / "c.pth")
    path = import_released(source, tmp_path / "encoder.pt", "alice")
    with pytest.raises(ValueError, match="relative_position_index has another order"):
        load_pretrained(HierarchicalTransformer(**SMALL), path)


LAYOUTS: dict[str, tuple[Callable[[State], Any], str | None, str | None]] = {
    "teacher": (lambda s: training(branch(theirs(seed=1)), branch(s)), None, "teacher"),
    "student": (lambda s: training(branch(s), branch(theirs(seed=1), "")), "student", "student"),
    "alone": (branch, None, None),
    "extracted": (lambda s: without(s, "final"), None, None),
    "extracted, as model": (lambda s: {"state_dict": without(s, "final")}, None, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    """Every tensor arrives unchanged; what extracted files lack is said, and left as it was."""
    make, which, taken = LAYOUTS[layout]
    state = theirs()
    path = import_released(saved(make(state), tmp_path / "c.pth"), tmp_path / "encoder.pt", "alice", which)
    extracted = "extracted" in layout
    record = inspect(path).provenance
    assert record.get("branch") == taken
    assert record.get("missing") == (["final.weight", "final.bias"] if extracted else None)
    network = HierarchicalTransformer(**SMALL, released=True)
    report = load_pretrained(network, path)
    assert report.missing == (["final.weight", "final.bias"] if extracted else [])
    assert torch.equal(
        network.encoder.layers[1].blocks[1].mlp.linear2.weight, state["model_down.layers.1.blocks.1.mlp.fc2.weight"]
    )
    assert torch.equal(
        network.encoder.downsamples[2].reduction.bias, state["model_down.layers.2.downsample.reduction.bias"]
    )
    assert torch.equal(network.decoder.layers[0].upsample.up.weight, state["decoder.layers.0.Upsample.up.weight"])
    assert torch.equal(network.final.weight, state["final.0.up.weight"]) != extracted


@pytest.mark.parametrize("shape", ["map", "tokens"])
def test_a_given_position_embedding(shape: str, tmp_path: Path) -> None:
    """It goes into the file, sets the size of images, and is added to the tokens."""
    positions = torch.randn(1, 12, 32, 32, 32, generator=torch.Generator().manual_seed(5))
    content = positions if shape == "map" else {"pos": positions.flatten(2).mT.clone()}
    given = saved(content, tmp_path / "positions.pt")
    source = saved(theirs(), tmp_path / "c.pth")
    path = import_released(source, tmp_path / "encoder.pt", "alice", position_embedding=given)
    network = HierarchicalTransformer(**SMALL, released=True)
    load_pretrained(network, path, minimum_share=1.0)
    assert torch.equal(network.encoder.position_embedding, positions)
    record = inspect(path).provenance["position_embedding"]
    assert record == {"source": "positions.pt", "source_sha256": hashlib.sha256(given.read_bytes()).hexdigest()}


@pytest.mark.parametrize("content", [torch.zeros(1, 48, 4, 4, 4), torch.zeros(1, 9, 12), {"a": 1}, torch.zeros(12)])
def test_other_position_embeddings_are_refused(content: Any, tmp_path: Path) -> None:
    given, source = saved(content, tmp_path / "p.pt"), saved(theirs(), tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"p\.pt is no position embedding: save one tensor of shape \(1, 12, depth"):
        import_released(source, tmp_path / "encoder.pt", "alice", position_embedding=given)


def test_the_authors_size(tmp_path: Path) -> None:
    """Names and shapes of the full size, in half precision to keep the file small."""
    with torch.device("meta"):
        own = HierarchicalTransformer(released=True).state_dict()
    shapes = random_state(6, (6, 12, 24, 48), WINDOWS, True)
    full = {name: tensor.half() for name, tensor in random_state(48, (6, 12, 24, 48), WINDOWS, True).items()}
    full |= {name: tensor for name, tensor in shapes.items() if name.endswith("index")}
    path = import_released(saved({"teacher": full}, tmp_path / "c.pth"), tmp_path / "encoder.pt", "alice")
    imported = read_state(path)
    assert {name: t.shape for name, t in imported.items()} == {name: t.shape for name, t in own.items()}
    settings = "embed_dim=48, depths=[2, 2, 2, 2], num_heads=[6, 12, 24, 48], window_size=[4, 4, 8, 4]"
    assert settings in inspect(path).provenance["network"]
    page = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8")
    snippet = next(
        text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "HierarchicalTransformer" in text
    )
    parser = ConfigParser(yaml.safe_load(snippet))
    parser["network_def"]["path"] = str(path)
    segmenter = parser.get_parsed_content("network_def")  # of 14 classes
    assert torch.equal(segmenter.encoder.norms[3].weight, full["model_down.norm3.weight"].float())


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a missing tensor": (
        lambda: branch(without(theirs(), "layers.1.blocks.0.attn.kv.bias")),
        r"1 missing \(decoder\.layers\.1\.blocks\.0\.attn\.kv\.bias\)",
    ),
    "a missing table": (
        lambda: without(theirs(), "model_down.layers.1.blocks.0.attn.relative_position_bias_table"),
        r"there is no encoder\.layers\.1\.blocks\.0\.attn\.relative_position_bias_table",
    ),
    "no tables of indices": (lambda: without(theirs(), "_index"), "14 missing"),
    "half of an output": (lambda: without(theirs(), "final.0.up.bias"), r"1 missing \(final\.bias\)"),
    "unknown in the backbone": (
        lambda: branch({**theirs(), "model_down.adapter.weight": torch.zeros(1)}),
        r"1 unknown \(encoder\.adapter\.weight\)",
    ),
    "unknown without prefix": (lambda: {**theirs(), "adapter.weight": torch.zeros(1)}, r"1 unknown \(adapter"),
    "another order of biases": (
        lambda: {n: t.T if n.endswith("index") else t for n, t in theirs().items()},
        r"another order of biases in encoder\.layers\.0",
    ),
    "two orders of biases": (
        lambda: (
            {n: t for n, t in theirs().items() if "model_down" in n}
            | {n: t for n, t in theirs(False).items() if "model_down" not in n}
        ),
        r"another order of biases in decoder\.layers\.0",
    ),
    "a table of no cube": (
        lambda: {
            n: t[:-1] if n.endswith("layers.2.blocks.1.attn.relative_position_bias_table") else t
            for n, t in theirs().items()
        },
        "of another shape",
    ),
    "two networks": (
        lambda: {f"{n}.{k}": t for n in ("student", "teacher") for k, t in theirs().items()},
        "holds 2 networks of Alice",
    ),
    "none": (lambda: {name: torch.zeros(shape) for name, shape in HEAD.items()}, "holds 0 networks of Alice"),
    "another object": (
        lambda: {"teacher": branch(theirs()), "args": Path("out")},
        r"pickled pathlib\S*.*torch\.save\(model",
    ),
    "an array": (lambda: {"teacher": branch(theirs()), "lr": np.float64(0.1)}, r"pickled numpy.*torch\.save\(model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_files_are_refused(case: str, tmp_path: Path) -> None:
    make, message = WRONG[case]
    source = saved(make(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message) as error:
        import_released(source, tmp_path / "encoder.pt", "alice")
    assert str(source) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "encoder.pt").exists()


def test_options_of_other_methods_are_refused(tmp_path: Path) -> None:
    """And the namespace is admitted for this method alone, while it reads."""
    source = saved(training(branch(theirs()), branch(theirs())), tmp_path / "c.pth")
    with pytest.raises(ValueError, match="leave channels out"):
        import_released(source, tmp_path / "e.pt", "alice", channels=1)
    with pytest.raises(ValueError, match="leave position_embedding out"):
        import_released(source, tmp_path / "e.pt", "peac", position_embedding=source)
    import_released(source, tmp_path / "e.pt", "alice")
    with pytest.raises(ValueError, match=r"argparse\.Namespace"):
        import_released(source, tmp_path / "e.pt", "peac")
