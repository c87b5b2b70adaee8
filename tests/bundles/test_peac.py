"""The PEAC bundle's pre-training, in seconds: radiographs of phantoms, volumes, resume, two processes, variants."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from anatomy_ssl.data.phantom import write_phantom_cohort
from tests.bundles.runs import TerminateAt, assert_same_weights

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "bundles" / "peac" / "configs"
TINY: dict[str, Any] = {
    "grid_size": [3, 2],
    "cell_size": 8,
    "slack": [1, 2],
    "images_per_batch": 2,
    "num_workers": 0,
    "epochs": 2,
    "warmup_epochs": 1,
    "global_features": 8,
    "local_features": 8,
    "encoder": {
        "_target_": "anatomy_ssl.networks.SwinEncoder",
        "spatial_dims": "@spatial_dims",
        "in_channels": 1,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
        "patch_size": 4,
    },
    "tensorboard": False,
    "mlflow": False,
    "device": "$torch.device('cpu')",
}


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight radiographs of phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_cohort(folder, subjects=8, seed=0, spacings=((9.0, 9.0, 9.0),), progress=False)
    return folder / "radiographs"


def files(folder: Path, names: tuple[str, ...] = (), **changes: Any) -> list[str]:
    """The recipe, overlays, and a file that makes it tiny."""
    folder.mkdir(exist_ok=True)
    (folder / "last.json").write_text(json.dumps({**TINY, **changes}))
    return [str(CONFIGS / name) for name in ("pretrain.yaml", *names)] + [str(folder / "last.json")]


def train(folder: Path, data: Path, names: tuple[str, ...] = (), **changes: Any) -> Path:
    """Run it in this process; returns the output folder."""
    places = {"dataset_dir": str(data), "output_dir": str(folder / "out")}
    monai.bundle.create_workflow(config_file=files(folder, names, **changes), run_id="training", **places).run()
    return folder / "out"


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The student's and the teacher's."""
    return torch.load(output / "checkpoint.pt", weights_only=True)["model"]


def test_the_encoder_that_is_kept_is_the_teachers(radiographs: Path, tmp_path: Path) -> None:
    output = train(tmp_path, radiographs, momentum=0.5)
    exported = torch.load(output / "encoder.pt", weights_only=True)
    state = weights(output)
    assert all(torch.equal(value, state[f"teacher.encoder.{name}"]) for name, value in exported["model"].items())
    assert not all(torch.equal(value, state[f"student.encoder.{name}"]) for name, value in exported["model"].items())
    assert (exported["provenance"]["method"], exported["provenance"]["grid_size"]) == ("peac", [3, 2])


def test_resume_equals_uninterrupted(radiographs: Path, tmp_path: Path) -> None:
    """Views, distortions, momentum and learning rate: stopped in the second epoch."""
    whole = train(tmp_path / "whole", radiographs)
    stopped = tmp_path / "stopped"
    workflow = monai.bundle.create_workflow(
        config_file=files(stopped), run_id="training", dataset_dir=str(radiographs), output_dir=str(stopped / "out")
    )
    TerminateAt(5).attach(workflow.parser.get_parsed_content("train#trainer"))
    with pytest.raises((SystemExit, RuntimeError)):
        workflow.run()
    train(stopped, radiographs, resume=True)
    assert_same_weights(whole, stopped / "out")


@pytest.mark.parametrize(
    ("names", "terms"),
    [
        ((), {"order", "restoration", "global", "local"}),
        (("variant_peac_minus_1.yaml",), {"order", "restoration", "global"}),
        (("variant_popar.yaml",), {"order", "restoration"}),
    ],
)
def test_variants_train_what_they_say(radiographs: Path, tmp_path: Path, names: tuple[str, ...], terms: set) -> None:
    own = {key for name in names for key in ConfigParser.load_config_file(CONFIGS / name)}
    tiny = {key: value for key, value in TINY.items() if key not in own}
    (tmp_path / "last.json").write_text(json.dumps({**tiny, "epochs": 1}))
    config = [str(CONFIGS / name) for name in ("pretrain.yaml", *names)] + [str(tmp_path / "last.json")]
    places = {"dataset_dir": str(radiographs), "output_dir": str(tmp_path / "out")}
    workflow = monai.bundle.create_workflow(config_file=config, run_id="training", **places)
    before = {k: v.clone() for k, v in workflow.parser.get_parsed_content("network_def").state_dict().items()}
    workflow.run()
    assert workflow.parser.get_parsed_content("loss").values.keys() == terms | {"loss"}
    after = weights(tmp_path / "out")
    still = [name for name in before if name.startswith("student.") and torch.equal(before[name], after[name])]
    assert not [name for name in still if "relative_position_index" not in name]


def test_vit(radiographs: Path, tmp_path: Path) -> None:
    """peac_minus_3, small: the cells are ViT's patches."""
    encoder = ConfigParser.load_config_file(CONFIGS / "variant_peac_minus_3.yaml")["encoder"]
    small = {**encoder, "hidden_size": 12, "mlp_dim": 24, "num_layers": 1, "num_heads": 2}
    output = train(tmp_path, radiographs, ("variant_peac_minus_3.yaml",), encoder=small, epochs=1)
    assert torch.load(output / "encoder.pt", weights_only=True)["provenance"]["method"] == "peac_minus_3"


def test_volumes(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = tmp_path_factory.mktemp("volumes")
    write_phantom_cohort(folder, subjects=8, spacings=((9.0, 9.0, 9.0),), radiographs=False, progress=False)
    size = {"grid_size": [2, 2, 2], "slack": [1, 1, 1], "spacing": [12.0, 12.0, 12.0], "cell_size": 4}
    encoder = {**TINY["encoder"], "patch_size": 2}
    output = train(tmp_path, folder, ("pretrain_3d.yaml",), encoder=encoder, epochs=1, **size)
    assert weights(output)["student.encoder.patch_embed.proj.weight"].shape == (8, 1, 2, 2, 2)


def test_two_processes_end_with_equal_weights_and_metrics(radiographs: Path, tmp_path: Path) -> None:
    record = {"_target_": "tests.bundles.runs.RecordProcess", "folder": str(tmp_path)}
    record |= {"network": "@network_def", "evaluator": "@validate#evaluator"}
    changes = {"+train#handlers": [record], "epochs": 1, "validation_fraction": 0.3}
    config = files(tmp_path, ("multi_gpu_pretrain.yaml",), **changes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "training", "--config_file", str(config)]
    command += ["--dataset_dir", str(radiographs), "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"process_{rank}.pt", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    assert first["metrics"] == pytest.approx(second["metrics"], nan_ok=True)


def test_properties(radiographs: Path, tmp_path: Path) -> None:
    """MONAI finds every required property, and the optional ones under their names."""
    places = {"dataset_dir": str(radiographs), "output_dir": str(tmp_path)}
    workflow = ConfigWorkflow(
        str(CONFIGS / "pretrain.yaml"), workflow_type="train", logging_file=False, **TINY, **places
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("change", ["truncated", "small"])
def test_bad_images_are_named(radiographs: Path, tmp_path: Path, change: str) -> None:
    """A file cut in half, and images that a recipe leaves smaller than the lattice."""
    folder = tmp_path / "images"
    folder.mkdir()
    for file in radiographs.glob("*.png"):
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if change == "truncated" else content)
    changes: dict[str, Any] = {}
    if change == "small":
        steps = ConfigParser.load_config_file(CONFIGS / "pretrain.yaml")["preprocessing"]
        changes = {"preprocessing": [s for s in steps if "ResizeToCover" not in str(s)], "cell_size": 512}
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, folder, **changes)
    told = "".join(traceback.format_exception(error.value))
    assert re.search(r"phantom_00\d\.png: " + ("cannot be read" if change == "truncated" else "is smaller"), told)
