"""Checks that run the bundle's network: weights fill it, its output fits the metadata, TorchScript gives the same."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.bundle.scripts import _get_fake_spatial_shape
from torch import Tensor, nn

from ..data.atomic import safe_load
from ..weights.files import some_of, unusable
from .files import MODEL

__all__ = ["check_network"]

logger = logging.getLogger(__name__)

ANY_SIZE = 32  # voxels, for a spatial_shape of "*"
NOT_BUILT = "monai.bundle.load cannot build it from another working directory"
REMEDIES = {
    "train": "start its paths from @bundle_root, and put there what it reads",
    "inference": "let it read no file, its weights come from models/model.pt",
}
SHOWN = 3  # names per list in a problem


@contextmanager
def _elsewhere() -> Iterator[Path]:
    """An empty working directory, with MONAI's messages off and the random state kept.

    `monai.bundle.load` leaves the working directory alone, so that a config must not count on being in the bundle.
    """
    before, level = os.getcwd(), logging.root.manager.disable
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            logging.disable(level)


def _said(error: BaseException) -> str:
    """The innermost cause in one line; MONAI wraps it in "Failed to instantiate"."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _read_weights(path: Path) -> tuple[dict[str, Tensor] | None, list[str]]:
    """State dict of models/model.pt and its problems; None where there is none to check."""
    try:
        content = safe_load(path)
    except ValueError as error:
        return None, [str(error).replace(str(path), MODEL)]
    problems = []
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        problems.append(
            f"{MODEL}: holds its weights under the key 'model', where monai.bundle.load(NAME) silently finds nothing, "
            "and the zoo's ckpt_export fails; save the state dict itself"
        )
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        return None, [*problems, f"{MODEL}: is no state dict of tensors; save network.state_dict()"]
    return dict(content), problems


def _fit(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps the weights from filling the network, in words."""
    own = network.state_dict()
    lists = {
        "missing": sorted(own.keys() - state.keys()),
        "not in the network": sorted(state.keys() - own.keys()),
        "of another shape": sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape),
    }
    return [
        f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for kind, names in lists.items()
        if names
    ]


def _build(bundle: Path, kind: str) -> nn.Module:
    """`network_def` as `monai.bundle.load` builds it; a training network may read pretrained weights of the bundle."""
    root = {"bundle_root": str(bundle)} if kind == "train" else {}
    config = str(bundle / "configs" / f"{kind}.json")
    workflow = ConfigWorkflow(config, workflow_type=kind, logging_file=False, **root)
    workflow.initialize()
    return workflow.network_def


def _check_output(network: nn.Module, metadata: dict[str, Any]) -> list[str]:
    """One tensor with the spatial shape of the metadata; channels and type are verify_net_in_out's."""
    image, pred = (metadata["network_data_format"][side] for side in ("inputs", "outputs"))
    image, pred = image["image"], pred["pred"]
    where = "configs/inference.json, network_def:"
    size = _get_fake_spatial_shape(image["spatial_shape"], any=ANY_SIZE)
    dtype = getattr(torch, image["dtype"])
    try:
        with torch.no_grad():
            output = network.eval()(torch.rand(1, image["num_channels"], *size).to(dtype))
    except Exception as error:
        return [f"{where} fails on the image of network_data_format ({_said(error)}); correct one of them"]
    if not isinstance(output, Tensor):
        return [f"{where} gives a {type(output).__name__}; wrap the network so that it gives one tensor"]
    expected = pred["spatial_shape"]
    if all(isinstance(n, int) for n in expected) and list(output.shape[2:]) != expected:
        return [
            f"{where} gives the spatial shape {list(output.shape[2:])}, configs/metadata.json, "
            f"network_data_format#outputs#pred#spatial_shape: {expected}; correct one of them"
        ]
    return []


def _check_torchscript(export: Callable[..., None], metadata: dict[str, Any]) -> list[str]:
    """Export by scripting, or else by tracing; the module must give the network's output."""
    image = metadata["network_data_format"]["inputs"]["image"]
    shape = [1, image["num_channels"], *_get_fake_spatial_shape(image["spatial_shape"], any=ANY_SIZE)]
    failures = []
    for use_trace in (False, True):
        same = {"verify": True, "device": torch.device("cpu"), "rtol": 1e-3, "atol": 1e-4}
        try:
            export(use_trace=use_trace, input_shape=shape, converter_kwargs=same)
            return []
        except Exception as error:
            failures.append(_said(error))
    return [
        f"configs/inference.json, network_def: TorchScript export fails, scripted ({failures[0]}) and traced "
        f"({failures[1]}); see monai.bundle.ckpt_export"
    ]


def _check_inference(bundle: Path, network: nn.Module, metadata: dict[str, Any], weights: Path) -> list[str]:
    """Output and export of the inference network, by MONAI's own commands."""
    files: dict[str, Any] = {
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.json"),
        "bundle_root": str(bundle),
    }
    problems = _check_output(network, metadata)
    if not problems:
        try:
            verify_net_in_out("network_def", device="cpu", any=ANY_SIZE, **files)
        except Exception as error:
            problems.append(
                f"configs/inference.json, network_def: is not what network_data_format says ({_said(error)}); "
                "correct configs/metadata.json or the network"
            )
    export = partial(
        ckpt_export, "network_def", filepath=str(weights.with_suffix(".ts")), ckpt_file=str(weights), **files
    )
    return problems if problems else _check_torchscript(export, metadata)


def check_network(bundle: Path, metadata: dict[str, Any], kinds: list[str], formats: bool) -> list[str]:
    """Problems of the weights and the networks, found by building them in an empty working directory.

    Args:
        bundle: absolute path of the bundle's folder.
        metadata: content of configs/metadata.json.
        kinds: configs to build, of "train" and "inference".
        formats: whether `network_data_format` is sound, so that the output can be checked against it.

    Returns:
        One sentence per problem.
    """
    state, problems = _read_weights(bundle / MODEL) if (bundle / MODEL).is_file() else (None, [])
    if not (bundle / MODEL).is_file():
        logger.warning("%s is not here: its weights are not checked", bundle / MODEL)
    with _elsewhere() as folder:
        for kind in kinds:
            try:
                network = _build(bundle, kind)
            except Exception as error:
                cause = _said(error).replace(f"{bundle}/", "")
                problems.append(f"configs/{kind}.json, network_def: {NOT_BUILT} ({cause}); {REMEDIES[kind]}")
                continue
            misfits = _fit(network, state) if state is not None else []
            broken = unusable(state, network.state_dict()) if state is not None else []
            if broken:
                problem = f"{MODEL}: has weights that cannot be used: {some_of(broken)}; train or export them again"
                problems += [] if problem in problems else [problem]
            if misfits:
                problems.append(
                    f"{MODEL}: does not fill network_def of configs/{kind}.json: {', '.join(misfits)}; save "
                    "the weights of exactly this network"
                )
            if kind == "inference" and formats:
                weights = folder / "weights.pt"  # random where the bundle's do not fit: the export is checked anyway
                torch.save(network.state_dict() if misfits or broken or state is None else state, weights)
                problems += _check_inference(bundle, network, metadata, weights)
    return problems
