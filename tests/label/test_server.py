"""Live: a bundle copied into a MONAI Label app answers /info, /infer and /train. Run by `make test-label`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from anatomy_ssl.weights import read_state

pytest.importorskip("monailabel", reason="needs MONAI Label: make test-label")

from tests.label.server import BUNDLES, Server, alive, make_app, serve, write_untrained

# bundles that draw masks, and folders of the phantom cohort: what a bundle reads, and what it learns to draw
COHORT = {"isimed": ("images", "lesions"), "alice": ("images", "organs")}
# bundles whose own weights need not find anything in phantoms: random ones do
RANDOM = {"alice"}
# left-right reversed, spacing 5 x 5 x 3 mm
STUDY = "phantom_002"
EPOCHS = 2

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("session", sorted(COHORT), indirect=True, scope="module")]


@dataclass
class Session:
    """What a server gave, from its start to its end.

    Args:
        name: the bundle, and the model that the server makes of it.
        metadata: of the bundle.
        info: answer to /info/.
        image: the scan that masks were asked for.
        masks: `before` and `after` training, and `turned`: before training, of the same scan with its axes stored in
            another order and direction.
        weights: of the model before and after training.
        log: what the server and its training printed.
        group: the server's process group.
    """

    name: str
    metadata: dict[str, Any]
    info: dict[str, Any]
    image: nib.Nifti1Image
    masks: dict[str, nib.Nifti1Image]
    weights: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
    log: str
    group: int


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Start, infer, hand in labels, train, infer, stop."""
    name = request.param
    images, labels = (cohort / folder for folder in COHORT[name])
    folder = tmp_path_factory.mktemp(name)
    studies = shutil.copytree(images, folder / "studies")
    image = nib.load(images / f"{STUDY}.nii.gz")
    nib.save(turn(image), studies / "turned.nii.gz")
    app = make_app(folder, BUNDLES / name, name)
    bundle = app / "model" / name
    if name in RANDOM:
        write_untrained(bundle)
    model = bundle / "models" / "model.pt"
    before = read_state(model)
    with serve(app, studies, name) as server:
        info = server.get("/info/")
        masks = {"before": server.infer(name, STUDY, folder), "turned": server.infer(name, "turned", folder)}
        train(server, name, labels)
        after = read_state(model)
        masks["after"] = server.infer(name, STUDY, folder)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    log = server.log.read_text(encoding="utf-8", errors="replace")
    return Session(name, metadata, info, image, masks, (before, after), log, server.group)


def train(server: Server, name: str, labels: Path) -> None:
    """Hand in the masks of all but the one study, and train."""
    for path in sorted(labels.iterdir()):
        subject = path.name.split(".")[0]
        if subject != STUDY:
            server.submit_label(subject, path)
    status = server.train(name, max_epochs=EPOCHS, val_split=0.2)
    assert status == "DONE", server.last_lines()


def turn(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same image in the same place, with its axes in another order and two of them reversed."""
    return image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj)


def expected_labels(metadata: dict[str, Any]) -> dict[str, int]:
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return {name.lower(): int(value) for value, name in channels.items() if name.lower() != "background"}


def test_info_names_the_bundle_its_labels_and_its_version(session: Session) -> None:
    model = session.info["models"][session.name]
    assert model["type"] == "segmentation"
    assert model["labels"] == expected_labels(session.metadata)
    assert model["version"] == session.metadata["version"]
    assert session.name in session.info["trainers"]


@pytest.mark.parametrize("when", ["before", "turned", "after"])
def test_mask_lies_on_the_voxels_of_the_scan(session: Session, when: str) -> None:
    """Shape, spacing, orientation and origin are those of the file, though the network works on another grid."""
    image = turn(session.image) if when == "turned" else session.image
    assert session.masks[when].shape == image.shape
    np.testing.assert_allclose(session.masks[when].affine, image.affine, atol=1e-3)


def test_mask_does_not_depend_on_how_the_axes_are_stored(session: Session) -> None:
    """So what was found is put back where it was found."""
    before, turned = voxels(turn(session.masks["before"])), voxels(session.masks["turned"])
    assert np.mean(before == turned) > 0.999
    assert before.any()


@pytest.mark.parametrize("when", ["before", "turned", "after"])
def test_mask_holds_only_known_labels(session: Session, when: str) -> None:
    values = voxels(session.masks[when])
    assert np.issubdtype(values.dtype, np.integer)
    assert set(np.unique(values)) <= {0, *expected_labels(session.metadata).values()}


def test_every_weight_is_loaded_by_name(session: Session) -> None:
    """MONAI Label loads without being strict and only warns."""
    assert "Checkpoint keys don't match" not in session.log
    assert "Restored all variables from" in session.log


def test_training_goes_on_from_the_model_and_replaces_it(session: Session) -> None:
    before, after = session.weights
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_next_inference_uses_the_trained_model(session: Session) -> None:
    assert "Reload model from cache" in session.log
    assert not np.array_equal(voxels(session.masks["before"]), voxels(session.masks["after"]))


def test_nothing_is_left_running(session: Session) -> None:
    assert not alive(session.group)
