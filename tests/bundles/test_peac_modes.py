"""PEAC's modes: the paper's choices, each loss on or off, and pictures while it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from tests.bundles.test_peac import CONFIGS, TINY, weights

LOSSES = ("order", "restoration", "global", "local")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of soft shapes."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(8):
        shapes = np.kron(random.random((6, 5)), np.ones((12, 12))) * 200 + random.random((72, 60)) * 40
        Image.fromarray(shapes.astype(np.uint8)).save(folder / f"image_{number}.png")
    return folder


def workflow(
    folder: Path, data: Path, names: tuple[str, ...] = (), without: tuple[str, ...] = (), **changes: Any
) -> Any:
    """The recipe, overlays, and a file that makes it tiny but for the keys `without`; not run."""
    tiny = {key: value for key, value in TINY.items() if key not in without}
    (folder / "last.json").write_text(json.dumps({**tiny, "epochs": 1, "pictures": False, **changes}))
    config = [str(CONFIGS / name) for name in ("pretrain.yaml", *names)] + [str(folder / "last.json")]
    places = {"dataset_dir": str(data), "output_dir": str(folder / "out")}
    return monai.bundle.create_workflow(config_file=config, run_id="training", **places)


def test_paper_mode(images: Path, tmp_path: Path) -> None:
    run: ConfigWorkflow = workflow(tmp_path, images, ("paper.yaml",), without=("warmup_epochs",))
    loss, optimizer = (run.parser.get_parsed_content(name) for name in ("loss", "optimizer"))
    assert loss.terms["local"].reduction == "images"
    assert not loss.terms["local"].centre
    assert not loss.terms["global"].centre
    assert loss.weights == {"order": 1, "restoration": 1, "global": 12.2, "local": 1}
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert run.parser.get_parsed_content("lr_scheduler").base_lrs == [0.1]
    assert run.parser.get_parsed_content("warmup_epochs") == 5
    run.run()
    provenance = torch.load(tmp_path / "out" / "encoder.pt", weights_only=True)["provenance"]
    assert (provenance["mode"], provenance["settings"]["optimizer"]) == ("paper", "SGD")


@pytest.mark.parametrize("off", [("order",), ("restoration",), ("global",), ("local",), ("order", "global", "local")])
def test_a_loss_is_switched_off_with_its_head_by_one_key(images: Path, tmp_path: Path, off: tuple[str, ...]) -> None:
    """What is left is trained, all of it, and the student has no more than it needs."""
    run = workflow(tmp_path, images, **{f"weights#{term}": 0 for term in off})
    network = run.parser.get_parsed_content("network_def")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    heads = {name for name in LOSSES if getattr(network.student, f"{name}_head") is not None}
    assert heads == set(LOSSES) - set(off)
    run.run()
    assert run.parser.get_parsed_content("loss").values.keys() == heads | {"loss"}
    after = weights(tmp_path / "out")
    still = [name for name in before if name.startswith("student.") and torch.equal(before[name], after[name])]
    assert not [name for name in still if "relative_position_index" not in name]


def test_all_losses_off(images: Path, tmp_path: Path) -> None:
    run = workflow(tmp_path, images, **{f"weights#{term}": 0 for term in LOSSES})
    with pytest.raises((RuntimeError, ValueError)) as refused:
        run.run()
    assert "Every weight is 0" in f"{refused.value} {refused.value.__cause__}"


def test_pictures_while_training_change_nothing_of_it(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plain, drawn = tmp_path / "plain", tmp_path / "drawn"
    for folder, pictures in ((plain, False), (drawn, True)):
        folder.mkdir()
        workflow(folder, images, epochs=2, pictures=pictures, picture_interval=2).run()
    assert sorted(file.name for file in (drawn / "out" / "pictures").iterdir()) == [
        "views_epoch_0001.png",
        "views_epoch_0002.png",
    ]
    assert not (plain / "out" / "pictures").exists()
    first, second = weights(plain / "out"), weights(drawn / "out")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_prepared_images_are_bytes(images: Path, tmp_path: Path) -> None:
    """Rounded from what the recipe prepares as floats, and using their whole range."""
    run = workflow(tmp_path, images)
    floats = [step for step in run.parser.get("preprocessing") if "255" not in str(step)]
    prepared = run.parser.get_parsed_content("train#dataset").prepared(0)["image"]
    assert prepared.dtype == torch.uint8
    (tmp_path / "floats").mkdir()
    other = workflow(tmp_path / "floats", images, preprocessing=floats)
    exact = other.parser.get_parsed_content("train#dataset").prepared(0)["image"]
    assert (exact * 255 - prepared).abs().max() <= 0.51
    assert prepared.float().std() > 20
