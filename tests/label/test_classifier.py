"""Live: a classifier of radiographs answers with probabilities and a heat map. Run by `make test-label`."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from PIL import Image

from anatomy_ssl.weights import read_state

pytest.importorskip("monailabel", reason="needs MONAI Label: make test-label")

from tests.label.server import BUNDLES, Server, alive, make_app, serve
from tests.transforms.test_radiographs import dicom

# bundles that classify, and the folder of the phantom cohort that holds what they read
COHORT = {"peac": "radiographs"}
STUDY = "phantom_002"
SIZE = (300, 420)  # columns and rows of the pictures

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("session", sorted(COHORT), indirect=True, scope="module")]


@dataclass
class Session:
    """What a server gave, from its start to its end.

    Args:
        name: the bundle, and the model that the server makes of it.
        configs: `train`, `inference` and `metadata` of the bundle.
        info: answer to /info/.
        answers: JSON answers, by what was asked for.
        pictures: heat maps by what was asked for, as they were sent.
        weights: of the model before and after training.
        log: what the server and its training printed.
        group: the server's process group.
    """

    name: str
    configs: dict[str, dict[str, Any]]
    info: dict[str, Any]
    weights: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
    log: str
    group: int
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)


def store(picture: Path, folder: Path) -> dict[str, Path]:
    """The picture in other kinds of files, with the same values."""
    values = np.asarray(Image.open(picture))
    affine = np.diag([-0.4, -0.4, 1.0, 1.0])
    nib.save(nib.Nifti1Image(values.T[..., None].copy(), affine), folder / "nifti.nii.gz")
    files = {"nifti": folder / "nifti.nii.gz"}
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        stored = values if kind == "MONOCHROME2" else 255 - values
        files[kind] = Path(dicom(folder / f"{kind}.dcm", stored.astype(np.int16), kind))
    return files


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Start, infer in several ways, hand in labels, train, infer, stop."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    studies, sent = folder / "studies", folder / "sent"
    studies.mkdir()
    sent.mkdir()
    for path in sorted((cohort / COHORT[name]).glob("*.png")):
        Image.open(path).resize(SIZE).save(studies / path.name)
    files = store(studies / f"{STUDY}.png", sent)
    shutil.copy(files["nifti"], studies)
    app = make_app(folder, BUNDLES / name, name)
    bundle = app / "model" / name
    configs = {
        n: json.loads((bundle / "configs" / f"{n}.json").read_text()) for n in ("train", "inference", "metadata")
    }
    before = read_state(bundle / "models" / "model.pt")
    label = configs["train"]["labels"][0]
    with serve(app, studies, name) as server:
        found = Session(name, configs, server.get("/info/"), (before, {}), "", server.group)
        found.answers["png"] = server.ask(name, "json", image=STUDY)
        found.pictures["png"] = server.ask(name, "image", image=STUDY, heat_map=label)
        found.answers["nifti"] = server.ask(name, "json", image="nifti")
        found.pictures["nifti"] = server.ask(name, "image", image="nifti", heat_map=label)
        for kind in ("MONOCHROME2", "MONOCHROME1"):
            found.answers[kind] = server.ask(name, "json", file=files[kind])
            found.pictures[kind] = server.ask(name, "image", file=files[kind], heat_map=label)
        found.pictures["all"] = server.ask(name, "all", image=STUDY)
        train(server, name, label, sorted(studies.glob("*.png")), folder)
        found.weights = (before, read_state(bundle / "models" / "model.pt"))
        found.answers["after"] = server.ask(name, "json", image=STUDY)
    found.log = server.log.read_text(encoding="utf-8", errors="replace")
    return found


def train(server: Server, name: str, label: str, images: list[Path], folder: Path) -> None:
    """Hand in findings as JSON files, and train."""
    for number, path in enumerate(images):
        findings = folder / f"{path.stem}.json"
        findings.write_text(json.dumps({label: number % 2}))
        server.submit_label(path.stem, findings)
    status = server.train(name, max_epochs=1, val_split=0.34)
    assert status == "DONE", server.last_lines()


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer["prediction"]}


def picture(content: bytes) -> np.ndarray:
    """`(rows, columns)` of a PNG."""
    return np.asarray(Image.open(io.BytesIO(content)))


def test_info_names_the_bundle_its_labels_and_its_choices(session: Session) -> None:
    model = session.info["models"][session.name]
    names = session.configs["inference"]["labels"]
    assert model["labels"] == {name.lower(): number for number, name in enumerate(names)}
    assert model["version"] == session.configs["metadata"]["version"]
    assert model["dimension"] == 2
    assert model["config"]["heat_map"] == ["likeliest", *names]
    assert session.name in session.info["trainers"]


@pytest.mark.parametrize("kind", ["png", "nifti", "MONOCHROME2", "MONOCHROME1", "after"])
def test_json_holds_the_probability_of_every_label(session: Session, kind: str) -> None:
    found = scores(session.answers[kind])
    assert list(found) == session.configs["inference"]["labels"]
    assert all(0 < value < 1 for value in found.values())


@pytest.mark.parametrize("kind", ["nifti", "MONOCHROME2", "MONOCHROME1"])
def test_storage_does_not_matter(session: Session, kind: str) -> None:
    """Nor whether a study is in the store or comes with the request."""
    assert scores(session.answers[kind]) == pytest.approx(scores(session.answers["png"]), abs=1e-5)


@pytest.mark.parametrize("kind", ["png", "MONOCHROME2", "MONOCHROME1"])
def test_heat_map_has_the_pixels_of_the_file(session: Session, kind: str) -> None:
    """As PNG, a grey value for each, and the same whatever the file was."""
    found = picture(session.pictures[kind])
    assert found.shape == SIZE[::-1]
    assert found.dtype == np.uint8
    assert found.any()
    assert np.abs(found.astype(int) - picture(session.pictures["png"])).max() <= 1


def test_heat_map_of_nifti_lies_where_the_image_lies(session: Session, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(session.pictures["nifti"])
    found = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert found.GetSize() == (*SIZE, 1)
    np.testing.assert_allclose(found.GetSpacing(), (0.4, 0.4, 1.0), atol=1e-6)
    values = sitk.GetArrayFromImage(found)[0]
    assert np.abs(values.astype(int) - picture(session.pictures["png"])).max() <= 1


def test_one_request_can_have_both(session: Session) -> None:
    """Of several parts, as viewers ask for it; without a class the likeliest one's map."""
    content = session.pictures["all"]
    assert b'"prediction"' in content
    assert b"\x89PNG" in content


def test_every_weight_is_loaded_by_name(session: Session) -> None:
    """MONAI Label loads without being strict and only warns."""
    assert "Checkpoint keys don't match" not in session.log
    assert "Restored all variables from" in session.log


def test_training_goes_on_from_the_model_and_is_used(session: Session) -> None:
    before, after = session.weights
    assert before.keys() == after.keys()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert scores(session.answers["after"]) != pytest.approx(scores(session.answers["png"]), abs=1e-7)


def test_nothing_is_left_running(session: Session) -> None:
    assert not alive(session.group)
