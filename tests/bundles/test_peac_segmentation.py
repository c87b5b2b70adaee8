"""PEAC's finetune_segmentation.yaml: from a pre-trained Swin to Dice and masks on the radiographs' own pixels."""

from __future__ import annotations

import csv
import json
import re
import shutil
import traceback
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from anatomy_ssl.data.phantom import write_phantom_cohort
from anatomy_ssl.networks.swin import SwinEncoder
from anatomy_ssl.weights.record import save_encoder
from tests.bundles.runs import TerminateAt, assert_same_weights

Image = pytest.importorskip("PIL.Image", reason="radiographs need Pillow (pip install anatomy-ssl[figures])")

CONFIGS = Path(__file__).parents[2] / "bundles" / "peac" / "configs"
RECIPE = CONFIGS / "finetune_segmentation.yaml"
SMALL = {
    "_target_": "anatomy_ssl.networks.SwinEncoder",
    "spatial_dims": 2,
    "in_channels": 1,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
    "patch_size": 4,
}
QUICK: dict[str, Any] = {
    "classes": {"lungs": "lungs", "heart": "heart"},
    "pretrained": None,
    "encoder": SMALL,
    "decoder_features": 8,
    "image_size": [48, 48],
    "images_per_batch": 2,
    "num_workers": 0,
    "epochs": 2,
    "repeats": 2,
    "val_interval": 1,
    "learning_rate": 0.005,
    "tensorboard": False,
    "mlflow": False,
    "device": "$torch.device('cpu')",
}


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datalist of radiographs that are higher than wide, and no multiple of anything; masks beside them."""
    folder = tmp_path_factory.mktemp("phantoms")
    spacings = ((9.0, 9.0, 9.0),)
    write_phantom_cohort(folder, subjects=8, spacings=spacings, radiograph_size=150, progress=False)
    for kind in ("radiographs", "lungs", "hearts", "clavicles"):
        for file in (folder / kind).glob("*.png"):
            Image.open(file).crop((10, 0, 141, 149)).save(file)
    return folder / "radiographs.json"


def files(folder: Path, **changes: Any) -> list[str]:
    """The recipe, and a file that makes it quick."""
    folder.mkdir(exist_ok=True)
    last = folder / "changes.json"
    last.write_text(json.dumps({**QUICK, **changes}))
    return [str(RECIPE), str(last)]


def finetune(run_id: str, folder: Path, dataset: Path, **changes: Any) -> Path:
    """Run it in this process; returns the output folder."""
    places = {"dataset_dir": str(dataset), "output_dir": str(folder / "out")}
    monai.bundle.create_workflow(config_file=files(folder, **changes), run_id=run_id, **places).run()
    return folder / "out"


def items(dataset: Path, split: str = "test") -> list[dict[str, Any]]:
    return json.loads(dataset.read_text())[split]


def mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def trained(radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a training, its evaluation, and masks."""
    folder = tmp_path_factory.mktemp("segmentation")
    finetune("training", folder, radiographs, epochs=5, repeats=6)
    finetune("evaluating", folder, radiographs)
    return finetune("inferring", folder, radiographs)


def test_evaluation_is_on_each_radiographs_own_pixels(trained: Path, radiographs: Path) -> None:
    """The Dice that it writes is that of the masks that it saves, at the files' size and the right way round."""
    with open(trained / "evaluation" / "metrics.csv", newline="") as file:
        metrics = {name: float(value) for name, value in csv.reader(file)}
    assert metrics.keys() == {"mean_dice", "lungs", "heart"}
    # a network that finds nothing has 0; one that says lungs everywhere 0.45, heart 0.1
    assert metrics["lungs"] > 0.7
    assert metrics["heart"] > 0.5
    for name in ("lungs", "heart"):
        found = []
        for item in items(radiographs):
            truth = mask(radiographs.parent / item[name])
            predicted = mask(trained / "masks" / f"{item['subject']}_{name}.png")
            assert predicted.shape == truth.shape == (149, 131)
            assert predicted.dtype == np.uint8
            assert set(np.unique(predicted)) <= {0, 255}
            found.append(dice(predicted > 0, truth > 0))
        assert np.mean(found) == pytest.approx(metrics[name], abs=1e-4)  # it writes four digits
    with open(trained / "evaluation" / "mean_dice_raw.csv", newline="") as file:
        listed = {Path(row["filename"]).name for row in csv.DictReader(file)}
    assert listed == {Path(item["image"]).name for item in items(radiographs)}


def test_resume_equals_uninterrupted(radiographs: Path, tmp_path: Path) -> None:
    whole = finetune("training", tmp_path / "whole", radiographs)
    stopped = tmp_path / "stopped"
    workflow = monai.bundle.create_workflow(
        config_file=files(stopped), run_id="training", dataset_dir=str(radiographs), output_dir=str(stopped / "out")
    )
    TerminateAt(7).attach(workflow.parser.get_parsed_content("train#trainer"))
    with pytest.raises((SystemExit, RuntimeError)):
        workflow.run()
    finetune("training", stopped, radiographs, resume=True)
    assert_same_weights(whole, stopped / "out")


def network(folder: Path, **changes: Any) -> torch.nn.Module:
    """What the recipe builds."""
    parser = ConfigParser()
    parser.read_config(files(folder, **changes))
    return parser.get_parsed_content("network_def")


def exported(folder: Path, **record: Any) -> Path:
    """encoder.pt of the small Swin, as a pre-training leaves it."""
    torch.manual_seed(3)
    encoder = SwinEncoder(**{key: value for key, value in SMALL.items() if key != "_target_"})
    provenance = {"method": "peac", "spatial_dims": 2, "grid_size": [14, 14], "cell_size": 8, **record}
    return save_encoder(encoder.state_dict(), provenance, folder / "encoder.pt")


def test_starts_from_the_pretrained_encoder_and_scratch_does_not(tmp_path: Path) -> None:
    """Images may have another size than those of the pre-training, here 6 cells for 14."""
    path = exported(tmp_path)
    state = torch.load(path, weights_only=True)["model"]
    built = network(tmp_path / "a", pretrained=str(path)).encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in built.items())
    fresh = network(tmp_path / "b").encoder.state_dict()
    assert any(not torch.equal(value, state[name]) for name, value in fresh.items() if "qkv" in name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"record": {"cell_size": 16}}, "was trained with cell_size 16, this run has 8"),
        ({"encoder": {**SMALL, "embed_dim": 16}}, "under the minimum"),
        ({"pretrained": "none.pt"}, "none.pt"),
    ],
)
def test_another_encoder_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = exported(tmp_path, **changes.pop("record", {}))
    with pytest.raises(Exception, match="Failed to instantiate") as error:
        network(tmp_path / "run", **{"pretrained": str(path), **changes})
    assert message in str(error.value.__cause__ or error.value)


def test_scratch_overlay_has_no_key_of_its_own() -> None:
    scratch = ConfigParser.load_config_file(CONFIGS / "scratch.yaml")
    assert scratch == {"pretrained": None, "freeze_epochs": 0, "layerwise_decay": 1.0}
    assert scratch.keys() <= ConfigParser.load_config_file(RECIPE).keys()


def test_pretrained_weights_held_back(radiographs: Path, tmp_path: Path) -> None:
    """Frozen for one epoch, then at smaller rates: only the decoder moves first."""
    path = exported(tmp_path)
    state = torch.load(path, weights_only=True)["model"]
    changes = {"pretrained": str(path), "freeze_epochs": 1, "layerwise_decay": 0.5, "repeats": 1}
    moved: dict[int, bool] = {}
    for epochs in (1, 2):
        output = finetune("training", tmp_path / str(epochs), radiographs, epochs=epochs, **changes)
        saved = torch.load(output / "checkpoint.pt", weights_only=True)["model"]
        same = [torch.equal(saved[f"encoder.{name}"], value) for name, value in state.items() if "index" not in name]
        moved[epochs] = not all(same)
    assert moved == {1: False, 2: True}


def test_loss_is_dice_and_binary_cross_entropy() -> None:
    """By their formulas, where two structures overlap."""
    parser = ConfigParser(ConfigParser.load_config_file(RECIPE))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, generator=generator)
    truth = (torch.rand(2, 3, 5, 7, generator=generator) > 0.4).float()
    p = logits.sigmoid()
    soft = 1 - (2 * (p * truth).sum(dim=(2, 3)) + 1e-5) / (p.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + 1e-5)
    entropy = -(truth * p.log() + (1 - truth) * (1 - p).log())
    torch.testing.assert_close(parser.get_parsed_content("loss")(logits, truth), soft.mean() + entropy.mean())


@pytest.mark.parametrize("change", ["no mask", "other size", "truncated", "label map"])
def test_bad_masks_are_named(radiographs: Path, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "data"
    shutil.copytree(radiographs.parent, folder, ignore=shutil.ignore_patterns("images", "organs", "lesions"))
    document = json.loads(radiographs.read_text())
    item = document["training"][1]
    heart = folder / item["heart"]
    if change == "no mask":
        del item["heart"]
    elif change == "other size":
        Image.open(heart).resize((100, 100)).save(heart)
    elif change == "truncated":
        heart.write_bytes(heart.read_bytes()[:40])
    else:
        Image.fromarray(np.resize(np.arange(3, dtype=np.uint8), (149, 131))).save(heart)
    (folder / "radiographs.json").write_text(json.dumps(document))
    told = {
        "no mask": rf"radiographs/{item['subject']}.png: the datalist gives no mask of the heart \('heart'\)",
        "other size": rf"hearts/{item['subject']}.png: the mask of the heart has 100 x 100 pixels",
        "truncated": rf"hearts/{item['subject']}.png: cannot be read",
        "label map": rf"hearts/{item['subject']}.png: the mask of the heart holds 3 values",
    }
    with pytest.raises(RuntimeError) as error:
        finetune("training", tmp_path / "run", folder / "radiographs.json")
    assert re.search(told[change], "".join(traceback.format_exception(error.value)))


def test_label_maps(radiographs: Path, tmp_path: Path) -> None:
    """One file for each radiograph, with a value for each structure."""
    document = json.loads(radiographs.read_text())
    for split in ("training", "validation", "test"):
        for item in document[split]:
            lungs, heart = (mask(radiographs.parent / item[key]) > 0 for key in ("lungs", "heart"))
            path = tmp_path / f"{item['subject']}_organs.png"
            Image.fromarray(np.where(heart, 7, np.where(lungs, 2, 0)).astype(np.uint8)).save(path)
            item |= {"image": str(radiographs.parent / item["image"]), "label": path.name}
    (tmp_path / "list.json").write_text(json.dumps(document))
    classes = {"lungs": 2, "heart": [7], "either": None}
    finetune("training", tmp_path / "run", tmp_path / "list.json", classes=classes, epochs=1)
    output = finetune("evaluating", tmp_path / "run", tmp_path / "list.json", classes=classes)
    with open(output / "evaluation" / "metrics.csv", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["mean_dice", "lungs", "heart", "either"]


def test_swin_b_fits_on_top(tmp_path: Path) -> None:
    """encoder_swin_b.yaml, without making its weights."""
    (tmp_path / "own.json").write_text(json.dumps({"pretrained": None}))
    parser = ConfigParser()
    parser.read_config([str(RECIPE), str(CONFIGS / "encoder_swin_b.yaml"), str(tmp_path / "own.json")])
    with torch.device("meta"):
        model = parser.get_parsed_content("network_def")
    assert model.encoder.num_features == 1024
    assert not any(size % model.encoder.cell_size for size in parser.get_parsed_content("image_size"))


def test_masks_of_any_format(trained: Path, radiographs: Path, tmp_path: Path) -> None:
    """Colour with alpha, 16 bit, DICOM, and NIfTI that lies otherwise in the world: the same picture, the same mask."""
    item = items(radiographs)[0]
    picture = Image.open(radiographs.parent / item["image"])
    values = np.asarray(picture)
    picture.convert("RGBA").save(tmp_path / "colour.png")
    Image.fromarray(values.astype(np.uint16) * 16).save(tmp_path / "deep.png")
    image = sitk.GetImageFromArray(values[None].astype(np.int16))
    image.SetMetaData("0008|0060", "DX")
    sitk.WriteImage(image, str(tmp_path / "dicom.dcm"))
    nib.save(nib.Nifti1Image(values.T.astype(np.float32), np.diag([-0.7, -0.7, 1, 1])), tmp_path / "nifti.nii.gz")
    names = ("colour.png", "deep.png", "dicom.dcm", "nifti.nii.gz")
    listed = [{"image": name, "subject": name} for name in names]
    (tmp_path / "list.json").write_text(json.dumps({"test": listed}))
    (tmp_path / "run" / "out").mkdir(parents=True)
    shutil.copy(trained / "model.pt", tmp_path / "run" / "out")
    output = finetune("inferring", tmp_path / "run", tmp_path / "list.json")
    truth = mask(trained / "masks" / f"{item['subject']}_lungs.png") > 0
    for name in names:
        found = mask(output / "masks" / f"{name.split('.')[0]}_lungs.png") > 0
        assert found.shape == truth.shape
        assert dice(found, truth) > 0.99, name


def test_training_masks_lie_where_the_image_does() -> None:
    """A slanted edge keeps its place to a tenth of a pixel; "nearest" would move it by half a pixel."""
    parser = ConfigParser()
    parser.read_config(str(RECIPE))
    row, column = torch.meshgrid(torch.arange(1024), torch.arange(1024), indexing="ij")
    label = (row * 0.3 + column < 700.0).to(torch.uint8)[None]
    prepared = {"label": MetaTensor(label)}
    for transform in parser.get_parsed_content("label_preparation"):
        prepared = transform(prepared)
    size = prepared["label"].shape[-1]
    moved = (prepared["label"].float().mean() - label.float().mean()) * size  # of the edge, in pixels of training
    assert abs(float(moved)) < 0.1
