"""Encoders for nnU-Net v2: build one from a plans file, and write a file that `nnUNetv2_train` starts from."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anatomy_ssl.data.atomic import atomic_save
from anatomy_ssl.weights.files import read_weights, some_of
from anatomy_ssl.weights.loading import load_pretrained
from anatomy_ssl.weights.report import LoadReport

__all__ = ["export_nnunet", "plan_architecture"]

logger = logging.getLogger(__name__)

# of a plan's arch_kwargs, what gives an encoder its shape; the last two have an entry per axis
SHAPE = ("features_per_stage", "n_blocks_per_stage", "kernel_sizes", "strides")
SEGMENTATION = ".seg_layers."  # nnU-Net never reads these layers from a file


def plan_architecture(plans: str | os.PathLike[str], configuration: str = "3d_fullres") -> dict[str, list[Any]]:
    """Read the encoder's shape from an nnU-Net plans file, with axes in this package's order.

    nnU-Net's arrays have SimpleITK's axes (slices first), reordered by the plan's `transpose_forward`; volumes here
    have the axes R, A, S (slices last). Kernel sizes and strides are turned accordingly.

    Args:
        plans: plans file of a ResEnc planner, such as `nnUNetResEncUNetMPlans.json`.
        configuration: one of its configurations: `2d`, `3d_fullres`, `3d_lowres`, ...

    Returns:
        `features_per_stage` and `n_blocks_per_stage` with a number per stage, `kernel_sizes` and `strides` with a
        number per stage and axis.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no plans file, lacks the configuration, plans another network than `ResidualEncoderUNet`
            or a cascade's later stage, or plans in 2D on slices that are not axial.
    """
    plan = _read_plan(plans, configuration)
    return {name: [_to_ours(row, plan.axes) for row in plan.arguments[name]] for name in SHAPE}


def export_nnunet(
    encoder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    plans: str | os.PathLike[str],
    configuration: str = "3d_fullres",
    input_channels: int | None = None,
    prefix: str | None = None,
    inflate: bool = False,
    seed: int = 0,
) -> LoadReport:
    """Write a pretrained encoder as a file for `nnUNetv2_train -pretrained_weights`.

    nnU-Net 2.8.1 asks for every tensor of the plan's network but the segmentation layers, each of equal shape. So the
    file holds a `ResidualEncoderUNet`: the encoder is `encoder`'s, its kernels turned to nnU-Net's axes (see
    `plan_architecture`); the decoder is nnU-Net's own random initialisation; segmentation layers are left out. nnU-Net
    reads `network_weights`; `provenance`, which it ignores, says all this beside the encoder's own record.

    Args:
        encoder: `encoder.pt` or training checkpoint, made with `encoder_resenc.yaml`.
        output: file to write, atomically.
        plans: nnU-Net's plans file of the data set to train on.
        configuration: one of its configurations.
        input_channels: image channels of that data set; None counts them in the `dataset.json` beside `plans`.
        prefix: what the file puts before `stem` and `stages`; None finds it.
        inflate: allow an encoder of one channel for images of several; see `resize.inflate`.
        seed: of the decoder.

    Returns:
        What of the encoder's file was used; all of the plan's encoder comes from there.

    Raises:
        FileNotFoundError: if there is no encoder or plans file.
        ValueError: if either cannot be read, the plan's encoder differs in a tensor or a stride, the channels are not
            known, or the plan is for another network (see `plan_architecture`).
        ImportError: if `dynamic_network_architectures` is not installed.
    """
    plan, shape = _read_plan(plans, configuration), plan_architecture(plans, configuration)
    channels = _count_channels(plans) if input_channels is None else int(input_channels)
    network, source = _build_networks(plan, shape, channels, seed)
    record = read_weights(encoder)[1]
    try:
        report = load_pretrained(source, encoder, prefix=prefix, minimum_share=0.0, inflate=inflate)
        _refuse_difference(report, record, shape)
    except ValueError as error:
        raise ValueError(
            f"{encoder} is not the encoder that {plans} plans for {configuration} with {channels} channel(s): {error}\n"
            f"pretrain with encoder_resenc.yaml and --plans {plans} --configuration {configuration}, or plan again"
        ) from error
    turned = {name: _to_nnunet(tensor, plan.axes) for name, tensor in source.state_dict().items()}
    network.get_submodule("encoder").load_state_dict(turned)
    weights = {name: tensor for name, tensor in network.state_dict().items() if SEGMENTATION not in name}
    made = {"pretrained": "encoder", "random": "decoder", "left out": "segmentation layers", "seed": seed}
    atomic_save({"network_weights": weights, "provenance": {"encoder": record, **plan.record, **made}}, output)
    logger.info("trained on crops of %s, spacing %s", record.get("crop_size", "?"), record.get("crop_spacing", "?"))
    logger.info("planned are patches of %s, spacing %s (R, A, S)", plan.record["patch_size"], plan.record["spacing"])
    return report


@dataclass(frozen=True)
class _Plan:
    """A configuration's network: its arguments with classes resolved, for each axis of nnU-Net's arrays the one here
    (R, A, S), and for the record its name, patch size (voxels) and spacing (mm) along the axes here.
    """

    arguments: dict[str, Any]
    axes: list[int]
    record: dict[str, Any]


def _read_plan(plans: str | os.PathLike[str], configuration: str) -> _Plan:
    """Read a configuration's architecture; errors name the file and the remedy."""
    content = _read_json(plans)
    configurations = content.get("configurations")
    if not isinstance(configurations, Mapping) or configuration not in configurations:
        names = ", ".join(configurations) if isinstance(configurations, Mapping) else "none: is it a plans file?"
        raise ValueError(f"{plans} has no configuration {configuration!r}; it has {names}")
    chosen = dict(configurations[configuration])
    while "inherits_from" in chosen:
        chosen = {**configurations[chosen.pop("inherits_from")], **chosen}
    if chosen.get("previous_stage"):
        raise ValueError(f"{configuration} in {plans} also reads a previous stage's labels: choose its first stage")
    architecture = chosen.get("architecture", {})
    name = architecture.get("network_class_name", chosen.get("UNet_class_name", "no network"))
    if "arch_kwargs" not in architecture or name.rpartition(".")[2] != "ResidualEncoderUNet":
        raise ValueError(
            f"{plans} plans {name} for {configuration}, and only ResidualEncoderUNet has this encoder: plan with a "
            "ResEnc planner of a current nnU-Net (-pl nnUNetPlannerResEncM)"
        )
    arguments = dict(architecture["arch_kwargs"])
    for key in architecture.get("_kw_requires_import", []):
        if arguments[key] is not None:
            arguments[key] = _torch_class(arguments[key], plans)
    dimensions = len(arguments["strides"][0])
    axes = [2 - axis for axis in content.get("transpose_forward", [0, 1, 2])][-dimensions:]
    if sorted(axes) != list(range(dimensions)):
        raise ValueError(f"{plans} plans {configuration} on slices that are not axial: choose a 3D configuration")
    sampling = {name: _to_ours(chosen.get(name), axes) for name in ("patch_size", "spacing")}
    return _Plan(arguments, axes, {"plans": Path(plans).name, "configuration": configuration, **sampling})


def _torch_class(name: str, plans: str | os.PathLike[str]) -> type[nn.Module]:
    """Find a layer named in a plan among torch's own; nnU-Net itself would import anything."""
    found = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(
            f"{plans} names {name} for its network, which is no layer of torch.nn: plan with a ResEnc planner"
        )
    return found


def _count_channels(plans: str | os.PathLike[str]) -> int:
    """Image channels that the data set's description beside the plans names."""
    path = Path(plans).with_name("dataset.json")
    if not path.is_file():
        raise ValueError(f"the number of image channels is not known, as there is no {path}: give input_channels")
    content = _read_json(path)
    return len(content.get("channel_names", content.get("modality", {})))


def _build_networks(
    plan: _Plan, shape: Mapping[str, list[Any]], channels: int, seed: int
) -> tuple[nn.Module, nn.Module]:
    """Build the plan's network, initialised as nnU-Net does it, and its encoder with axes in this package's order."""
    try:
        from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
        from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
    except ImportError as error:
        raise ImportError(
            "nnU-Net's networks need dynamic_network_architectures: pip install anatomy-ssl[nnunet]"
        ) from error
    names = inspect.signature(ResidualEncoder).parameters
    arguments = {name: value for name, value in {**plan.arguments, **shape}.items() if name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResidualEncoderUNet(input_channels=channels, num_classes=2, **plan.arguments)
        network.apply(network.initialize)
        encoder = ResidualEncoder(input_channels=channels, **arguments)
    return network, encoder


def _refuse_difference(report: LoadReport, record: Mapping[str, Any], shape: Mapping[str, list[Any]]) -> None:
    """Refuse a part of the plan's encoder, further layers of the file, and other strides, which no tensor shows."""
    if report.missing or report.mismatched:
        raise ValueError(str(report))
    further = [name for name in report.unexpected if name.startswith(report.prefix)]
    if further:
        raise ValueError(f"the file has layers that the plan lacks ({some_of(further)})")
    recorded = record.get("architecture")
    if recorded is None:
        logger.warning(
            "%s does not record its strides, which no tensor shows: check them against the plan", report.path
        )
        return
    for name, planned in shape.items():
        if recorded.get(name) != planned:
            raise ValueError(f"its {name} are {recorded.get(name)}, the plan's {planned}")


def _to_ours(entry: Any, axes: Sequence[int]) -> Any:
    """A kernel size or stride per axis, from nnU-Net's axes to ours; other entries as they are."""
    if not isinstance(entry, list):
        return entry
    return [entry[axes.index(axis)] for axis in range(len(axes))]


def _to_nnunet(tensor: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """A convolution's weight `(O, I, *k)` from our axes to nnU-Net's; other tensors as they are."""
    return tensor.permute(0, 1, *(2 + axis for axis in axes)).contiguous() if tensor.ndim > 2 else tensor


def _read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an object from a JSON file."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no file {path}: nnU-Net keeps plans and dataset.json under nnUNet_preprocessed/DATASET"
        )
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}): give nnU-Net's own") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: give nnU-Net's own file")
    return content
