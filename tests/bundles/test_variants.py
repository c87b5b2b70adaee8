"""Every overlay trains: the method's variants, the published mode, the encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.bundles.runs import CONFIGS, parsed

CPU = torch.device("cpu")
VARIANTS = {
    "isimed": ["distance"],
    "simclr": ["ntxent"],
    "barlow": ["barlow"],
    "barlow_isimed": ["distance", "barlow"],
    "barlow_isimed_two_heads": ["distance", "barlow"],
    "coordinate_regression": ["coordinate"],
}
TWO_VIEWS = ("simclr", "barlow", "barlow_isimed", "barlow_isimed_two_heads")


def overlays(variant: str, *others: str) -> tuple[str, ...]:
    """Files of a variant; pretrain.yaml itself is isimed."""
    return (*([] if variant == "isimed" else [f"variant_{variant}.yaml"]), *others)


def get(parser: ConfigParser, name: str) -> Any:
    """A part of a configuration, made once."""
    return parser.get_parsed_content(name)


def test_the_variants_here_are_all_there_are() -> None:
    files = {file.stem.removeprefix("variant_") for file in CONFIGS.glob("variant_*.yaml")}
    assert files | {"isimed"} == set(VARIANTS)


@pytest.mark.parametrize("mode", ["default", "paper"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_trains_and_exports_its_encoder(variant: str, mode: str, cohort: Path, tmp_path: Path) -> None:
    """Its terms and no others, finite; encoder.pt fits a fresh encoder, differs from it, and says what it is."""
    names = overlays(variant, *(["paper.yaml"] if mode == "paper" else []))
    parser = parsed(tmp_path, cohort, names, epochs=1)
    before = {name: value.clone() for name, value in get(parser, "encoder").state_dict().items()}
    get(parser, "train#trainer").run()
    values = get(parser, "loss").values
    assert list(values) == [*VARIANTS[variant], "loss"]
    assert all(torch.isfinite(value) for value in values.values())
    file = torch.load(tmp_path / "out" / "encoder.pt", weights_only=True)
    assert (file["provenance"]["method"], file["provenance"]["mode"]) == (variant, mode)
    get(parsed(tmp_path, cohort, names), "encoder").load_state_dict(file["model"], strict=True)
    assert any(not torch.equal(value, before[name]) for name, value in file["model"].items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_views(variant: str, cohort: Path, tmp_path: Path) -> None:
    """Two different distortions of the same crops where a variant compares views, else the crops themselves."""
    parser = parsed(tmp_path, cohort, overlays(variant))
    batch = next(iter(get(parser, "train#dataloader")))
    torch.manual_seed(0)
    images, targets = get(parser, "train#trainer").prepare_batch(batch, CPU)
    plain = torch.as_tensor(batch["image"])
    assert plain.shape == (8, 1, 8, 8, 8)
    assert targets["position"].shape == (8, 3)
    if variant not in TWO_VIEWS:
        assert torch.equal(images, plain)
        return
    assert [view.shape for view in images] == [plain.shape] * 2
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], plain)
    # validation sees the crops as they are
    images, _ = get(parser, "validate#evaluator").prepare_batch(batch, CPU)
    assert torch.equal(images, plain)


def test_paper_mode_goes_on_top_of_the_variants(cohort: Path, tmp_path: Path) -> None:
    """All pairs, unscaled, and the release's weight of 10,000 for Barlow."""
    for variant in ("isimed", "barlow_isimed", "barlow_isimed_two_heads"):
        loss = get(parsed(tmp_path, cohort, overlays(variant, "paper.yaml")), "loss")
        assert (loss.terms["distance"].pairs, loss.terms["distance"].reference_length) == ("all", 1.0)
        assert loss.weights.get("barlow", 10_000.0) == 10_000.0
        loss = get(parsed(tmp_path, cohort, overlays(variant)), "loss")
        assert (loss.terms["distance"].pairs, loss.terms["distance"].reference_length) == ("same_subject", 100.0)


@pytest.mark.parametrize("part", ["train", "validate"])
def test_paper_mode_counts_voxels_of_the_foreground_crop(part: str, cohort: Path, tmp_path: Path) -> None:
    """A position is the index of the crop's centre in the foreground-cropped volume; there is no origin."""
    dataset = get(parsed(tmp_path, cohort, ("paper.yaml",)), f"{part}#dataset")
    volume = dataset.prepared(0)["image"]
    image = nib.as_closest_canonical(nib.load(dataset.data[0]["image"])).get_fdata()
    box = np.argwhere(image > 0)
    assert tuple(volume.shape[1:]) == tuple(np.maximum(np.ptp(box, axis=0) + 1, 8))
    for crop in dataset[0]:
        start = crop["position"] - 3.5
        assert torch.equal(start, start.round())
        window = tuple(slice(int(a), int(a) + 8) for a in start)
        assert torch.equal(crop["image"], volume.as_tensor()[(slice(None), *window)])
        assert "origin" not in crop


def test_evaluation_of_paper_mode_is_in_millimetres(cohort: Path, tmp_path: Path) -> None:
    """evaluate.yaml on top puts the true positions back, for training and held-out patients alike."""
    parser = parsed(tmp_path, cohort, ("paper.yaml", "evaluate.yaml"))
    for part in ("train", "test"):
        dataset = get(parser, f"{part}#dataset")
        affine = nib.as_closest_canonical(nib.load(dataset.data[0]["image"])).affine
        volume = dataset.prepared(0)["image"]
        assert np.allclose(volume.affine[:3, :3], affine[:3, :3])
        for crop in dataset[0]:
            voxel = np.linalg.solve(volume.affine.numpy(), [*crop["position"].tolist(), 1.0])[:3]
            start = np.round(voxel - 3.5).astype(int)
            window = tuple(slice(a, a + 8) for a in start)
            assert torch.equal(crop["image"], volume.as_tensor()[(slice(None), *window)])
            assert torch.allclose(crop["origin"], torch.tensor(dataset.data[0]["origin"]))


ENCODERS = {file.stem: [file.name] for file in CONFIGS.glob("encoder_*.yaml")}
ENCODERS |= {"densenet": [], "densenet_group": ["group_norm.yaml"]}


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_encoder_at_its_true_size(name: str, cohort: Path) -> None:
    """One vector for each crop; every weight that trains gets a gradient, which distributed training asks for."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / file) for file in ["pretrain.yaml", *ENCODERS[name]]])
    parser.update({"dataset_dir": str(cohort)})
    network, size = get(parser, "network_def"), get(parser, "crop_size")
    output = network(torch.rand(2, 1, *size))["embedding"]
    assert output.shape == (2, get(parser, "embedding_size"))
    output.square().sum().backward()
    assert not [k for k, p in network.named_parameters() if p.requires_grad and p.grad is None]
    batch_norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert bool(batch_norms) == (name in ("densenet", "encoder_densenet121", "encoder_resnet", "encoder_unet"))


def test_small_encoder_trains(cohort: Path, tmp_path: Path) -> None:
    """As in the demonstration, with its 24 samples at 4 mm from coarser voxels."""
    names = ("encoder_small.yaml", "demo.yaml")
    parser = parsed(tmp_path, cohort, names, epochs=1, repeats=1, crops_per_volume=2)
    get(parser, "train#trainer").run()
    weights = torch.load(tmp_path / "out" / "encoder.pt", weights_only=True)["model"]
    get(parsed(tmp_path, cohort, names), "encoder").load_state_dict(weights, strict=True)
    assert sum(value.numel() for value in weights.values()) > 100_000
