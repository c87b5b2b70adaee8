"""inference.json of PEAC: probabilities whatever the storage, heat maps on the file's own pixels, clear errors."""

from __future__ import annotations

import csv
import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.bundle import ConfigParser
from PIL import Image
from torch import nn

from tests.transforms.test_radiographs import dicom

CONFIGS = Path(__file__).parents[2] / "bundles" / "peac" / "configs"
ROWS, COLUMNS = 180, 240
CELL = 16


class BrightCells(nn.Module):
    """Stands in for an encoder: the features of a cell are its mean intensity and 1.

    Args:
        cell_size: pixels.
    """

    def __init__(self, cell_size: int = CELL) -> None:
        super().__init__()
        self.cell_size, self.num_features = cell_size, 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features `(N, 2, *grid)` of images `(N, 1, *size)`."""
        mean = nn.functional.avg_pool2d(x, self.cell_size)
        return torch.cat([mean, torch.ones_like(mean)], dim=1)


def save_weights(path: Path, labels: int = 2) -> Path:
    """Class 0 is where it is bright, class 1 where it is dark; others nowhere."""
    head = {"head.weight": torch.zeros(labels, 2), "head.bias": torch.zeros(labels)}
    head["head.weight"][0], head["head.weight"][1] = torch.tensor([3.0, 3.0]), torch.tensor([-3.0, -3.0])
    torch.save(head, path)
    return path


SETTINGS: dict[str, Any] = {
    "labels": ["bright", "very dark"],
    "image_size": [96, 96],
    "crop_size": [80, 80],
    "encoder": {"_target_": "tests.bundles.test_peac_inference.BrightCells"},
    "device": torch.device("cpu"),
}


def infer(data: Path, output: Path, **changes: Any) -> list[dict[str, str]]:
    """Run inference.json on images; returns the rows of its table."""
    output.mkdir(parents=True, exist_ok=True)
    changes = {"checkpoint": str(save_weights(output / "weights.pt")), **changes}
    config = str(CONFIGS / "inference.json")
    monai.bundle.run(
        "run", config_file=config, dataset_dir=str(data), output_dir=str(output), **{**SETTINGS, **changes}
    )
    with open(output / "probabilities.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def planted(rows: int = ROWS, columns: int = COLUMNS, at: tuple[int, int] = (60, 150), radius: int = 24) -> np.ndarray:
    """A dark picture `(rows, columns)` uint8 with some texture, and a bright disk at `(row, column)`."""
    row, column = np.ogrid[:rows, :columns]
    disk = (row - at[0]) ** 2 + (column - at[1]) ** 2 < radius**2
    texture = np.random.default_rng(0).integers(0, 40, (rows, columns))
    return np.where(disk, 255, texture).astype(np.uint8)


def _nifti(values: np.ndarray, path: Path, axes: int = 3) -> None:
    affine = np.array([[-0.4, 0, 0, 90], [0, -0.4, 0, 70], [0, 0, 1, 5], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(values.T.reshape(values.T.shape + (1,) * (axes - 2)), affine), path)


STORED: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "grey.png": lambda values, path: Image.fromarray(values).save(path),
    "rgb.png": lambda values, path: Image.fromarray(np.stack([values] * 3, axis=-1)).save(path),
    "deep.png": lambda values, path: Image.fromarray(values.astype(np.uint16) * 100).save(path),
    "palest.dcm": lambda values, path: dicom(path, values.astype(np.int16)),
    "inverted.dcm": lambda values, path: dicom(path, (255 - values).astype(np.int16), "MONOCHROME1"),
    "flat.nii": lambda values, path: _nifti(values, path, axes=2),
    "thick.nii.gz": _nifti,
    "picture.mha": lambda values, path: sitk.WriteImage(sitk.GetImageFromArray(values), str(path)),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, str]], Path, Path]:
    """Rows by file name, the folder of images, and that of heat maps of all classes."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, store in STORED.items():
        store(planted(), folder / name)
    # a folder with volumes' files lists no pictures
    items = [{"image": name, "subject": name} for name in STORED]
    (folder / "datalist.json").write_text(json.dumps({"test": items}))
    output = tmp_path_factory.mktemp("found")
    rows = infer(folder, output, heat_maps="all")
    return {Path(row["image"]).name: row for row in rows}, folder, output


def heat(output: Path, name: str, label: str) -> np.ndarray:
    """A heat map as `(rows, columns)` of 0 to 1."""
    stem = output / f"{name.split('.')[0]}_{label}"
    if name.endswith((".nii", ".nii.gz")):
        values = nib.load(f"{stem}.nii.gz").get_fdata()
        assert values.shape == (COLUMNS, ROWS, 1)
        return values[..., 0].T
    return np.asarray(Image.open(f"{stem}.png")) / 255


def test_one_row_for_each_image(results: tuple[dict[str, dict[str, str]], Path, Path]) -> None:
    rows, folder, _ = results
    assert rows.keys() == STORED.keys()
    for name, row in rows.items():
        assert list(row) == ["image", "bright", "very dark"]
        assert row["image"] == str(folder / name)


def test_single_file_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is relative to the current folder."""
    Image.fromarray(planted()).save(tmp_path / "grey.png")
    monkeypatch.chdir(tmp_path)
    (row,) = infer(Path("grey.png"), tmp_path / "out", heat_maps="bright")
    assert row["image"] == str(tmp_path / "grey.png")
    assert (tmp_path / "out" / "grey_bright.png").is_file()


@pytest.mark.parametrize("name", STORED)
def test_probabilities_do_not_depend_on_storage(
    name: str, results: tuple[dict[str, dict[str, str]], Path, Path]
) -> None:
    rows, *_ = results
    for label in ("bright", "very dark"):
        assert float(rows[name][label]) == pytest.approx(float(rows["grey.png"][label]), abs=1e-5)
        assert 0.01 < float(rows[name][label]) < 0.99


@pytest.mark.parametrize("name", STORED)
def test_heat_lies_on_the_planted_disk(name: str, results: tuple[dict[str, dict[str, str]], Path, Path]) -> None:
    """Within a cell, as the file stores it; the other class is where the disk is not."""
    _, _, output = results
    bright, dark = heat(output, name, "bright"), heat(output, name, "very_dark")
    assert bright.shape == dark.shape == (ROWS, COLUMNS)
    row, column = np.ogrid[:ROWS, :COLUMNS]
    cell = CELL * ROWS / 96  # pixels of the file
    near = (row - 60) ** 2 + (column - 150) ** 2
    weight = np.where(bright > 0.5 * bright.max(), bright, 0)
    centre = [(weight * axis).sum() / weight.sum() for axis in (row, column)]
    assert np.hypot(centre[0] - 60, centre[1] - 150) < 0.6 * cell
    assert bright[near < 8**2].min() > 3 * bright[near > (24 + 1.6 * cell) ** 2].max()
    seen = np.broadcast_to((column >= 30) & (column < 210), dark.shape)  # the middle square
    assert dark[near < 8**2].max() < dark[seen & (near > (24 + 1.6 * cell) ** 2)].min()


def test_what_was_cut_off_is_zero(results: tuple[dict[str, dict[str, str]], Path, Path]) -> None:
    """Of a wide picture the network sees the middle square, to its last pixel."""
    _, _, output = results
    found = heat(output, "grey.png", "very_dark")
    assert not found[:, :30].any()
    assert not found[:, 210:].any()
    assert (found[:, 30:210] > 0).all()


def test_nifti_keeps_its_place(results: tuple[dict[str, dict[str, str]], Path, Path]) -> None:
    _, folder, output = results
    for name in ("flat.nii", "thick.nii.gz"):
        found = nib.load(output / f"{name.split('.')[0]}_bright.nii.gz")
        np.testing.assert_allclose(found.affine, nib.load(folder / name).affine, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(96, 96), (50, 61), (311, 97), (1000, 1200)])
def test_original_size_whatever_it_is(rows: int, columns: int, tmp_path: Path) -> None:
    """Smaller than the network's image, tall, wide, large."""
    Image.fromarray(planted(rows, columns, at=(rows // 2, columns // 2), radius=rows // 12)).save(tmp_path / "a.png")
    infer(tmp_path / "a.png", tmp_path / "out", heat_maps=["bright"])
    found = np.asarray(Image.open(tmp_path / "out" / "a_bright.png")).astype(float)
    assert found.shape == (rows, columns)
    place = np.argwhere(found == found.max()).mean(axis=0)
    assert np.abs(place - [rows // 2, columns // 2]).max() <= 0.6 * CELL * min(rows, columns) / 96


def test_likeliest_class_and_table_as_json(tmp_path: Path) -> None:
    """By default one map of each image; none where they are switched off."""
    (tmp_path / "in").mkdir()
    Image.fromarray(planted()).save(tmp_path / "in" / "a.png")
    Image.fromarray(255 - planted()).save(tmp_path / "in" / "b.png")
    table = tmp_path / "out" / "table.json"
    with pytest.raises(FileNotFoundError):  # no CSV where the table is JSON
        infer(tmp_path / "in", tmp_path / "out", table=str(table))
    found = json.loads(table.read_text())
    assert [Path(row["image"]).name for row in found] == ["a.png", "b.png"]
    assert found[0]["very dark"] > found[0]["bright"]
    assert found[1]["bright"] > found[1]["very dark"]
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"a_very_dark.png", "b_bright.png"}
    infer(tmp_path / "in", tmp_path / "none", save_heat_maps="false")
    assert not list((tmp_path / "none").glob("*.png"))


def test_files_of_one_name_do_not_replace_one_another(tmp_path: Path) -> None:
    for name in ("p1/a.png", "p2/a.png", "p2/a.dcm"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        STORED["palest.dcm" if name.endswith("dcm") else "grey.png"](planted(), tmp_path / "in" / name)
    items = [{"image": name, "subject": str(i)} for i, name in enumerate(("p1/a.png", "p2/a.png", "p2/a.dcm"))]
    (tmp_path / "in" / "datalist.json").write_text(json.dumps({"test": items}))
    infer(tmp_path / "in", tmp_path / "out", heat_maps=["bright"])
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert found == {str(Path(p)) for p in ("p1/a_bright.png", "p2/a_bright.png", "p2/a.dcm_bright.png")}


def test_exclusive_classes_sum_to_one(tmp_path: Path) -> None:
    Image.fromarray(planted()).save(tmp_path / "a.png")
    (row,) = infer(tmp_path / "a.png", tmp_path / "out", exclusive=True, heat_maps="all")
    assert float(row["bright"]) + float(row["very dark"]) == pytest.approx(1, abs=1e-6)
    maps = [np.asarray(Image.open(tmp_path / "out" / f"a_{n}.png")) for n in ("bright", "very_dark")]
    total = maps[0].astype(int) + maps[1]
    assert np.abs(total[:, 30:210] - 255).max() <= 1


def test_probabilities_are_those_that_evaluating_reports(tmp_path: Path) -> None:
    """Of the same images and weights, with the crops at the corners."""
    (tmp_path / "in").mkdir()
    items = []
    for number, (rows, columns) in enumerate([(180, 240), (200, 150), (96, 96), (70, 300)]):
        picture = planted(rows, columns, at=(rows // 3, columns // 2))
        Image.fromarray(picture).save(tmp_path / "in" / f"{number}.png")
        labels = {"bright": number % 2, "very dark": (number + 1) % 2}
        items.append({"image": f"{number}.png", "subject": str(number), "labels": labels})
    (tmp_path / "in" / "datalist.json").write_text(json.dumps({"test": items}))
    rows = infer(tmp_path / "in", tmp_path / "out", save_heat_maps=False)
    save_weights(tmp_path / "out" / "model.pt")
    places = {"dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), "pretrained": ""}
    config = str(CONFIGS / "train.json")
    monai.bundle.run("evaluating", config_file=config, **{**SETTINGS, **places}, bootstrap=2, tensorboard=False)
    with open(tmp_path / "out" / "evaluation" / "predictions.csv", newline="", encoding="utf-8") as file:
        reported = list(csv.DictReader(file))
    assert len(rows) == len(reported) == 4
    for row, other in zip(rows, reported):
        assert row["image"] == other["image"]
        for label in SETTINGS["labels"]:
            assert float(row[label]) == pytest.approx(float(other[label]), abs=2e-6)


def as_monai_label_runs_it(parser: ConfigParser, request: Mapping[str, Any]) -> dict[str, Any]:
    """Each transform by itself on a dictionary of the request, as tasks/infer/bundle.py of MONAI Label 0.8.5 does."""
    data = dict(request)
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
        data["latencies"] = {}
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(request["weights"], weights_only=True))
    with torch.no_grad():
        outputs = parser.get_parsed_content("inferer")(data["image"][None], network)
    data["pred"] = {name: value[0] for name, value in outputs.items()}
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    return data


@pytest.mark.parametrize(("asked", "label"), [(["likeliest", "bright"], "very_dark"), ("bright", "bright")])
@pytest.mark.parametrize("name", ["grey.png", "inverted.dcm", "thick.nii.gz"])
def test_what_monai_label_gets(
    name: str, asked: Any, label: str, results: tuple[dict[str, dict[str, str]], Path, Path], tmp_path: Path
) -> None:
    """The same numbers; no entry of the request is dropped, and the picture has the axes of the file."""
    rows, folder, output = results
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "inference.json"))
    parser.update({**SETTINGS, "device": "cpu", "bundle_root": str(CONFIGS.parent)})
    path, weights = str(folder / name), str(save_weights(tmp_path / "weights.pt"))
    request = {"image": path, "image_path": path, "model": "peac", "heat_map": asked, "weights": weights}
    data = as_monai_label_runs_it(parser, request)
    assert request.keys() <= data.keys()
    for entry in data["result"]["prediction"]:
        assert entry["score"] == pytest.approx(float(rows[name][entry["label"]]), abs=1e-6)
    picture = data["pred"].numpy()
    assert picture.dtype == np.uint8
    # MONAI Label's writer turns the axes round, and its Restored resizes what differs from spatial_shape
    shape = (COLUMNS, ROWS, 1) if "nii" in name else (COLUMNS, ROWS)
    assert picture.shape == shape
    assert tuple(data["image"].meta["spatial_shape"]) == shape
    assert data.get("result_extension") == (None if "nii" in name else ".png")
    np.testing.assert_allclose(picture.squeeze().T, 255 * heat(output, name, label), atol=0.6)


def fails(tmp_path: Path, data: Path, **changes: Any) -> str:
    """What a run says that has to fail."""
    with pytest.raises((RuntimeError, ValueError)) as raised:
        infer(data, tmp_path / "out", **changes)
    return "".join(traceback.format_exception(raised.type, raised.value, raised.tb))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"heat_maps": ["cardiomegaly"]},
            "no heat map of cardiomegaly: give likeliest, all, or some of bright, very dark",
        ),
        ({"checkpoint": "absent.pt"}, "no weights at absent.pt"),
        ({"labels": ["one"]}, "fit"),
        ({"table": "table.xls"}, "ends neither in .csv nor in .json"),
        ({"inferer#features": "encoder.stem"}, "has no part 'encoder.stem'"),
        ({"inferer#head": "dropout"}, "is not the mean over cells"),
        ({"crop_size": [112, 112]}, "hold no crop of"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    Image.fromarray(planted()).save(tmp_path / "a.png")
    assert message in fails(tmp_path, tmp_path / "a.png", **changes)


def test_wrong_images(tmp_path: Path) -> None:
    """A truncated picture, a volume, a DICOM file without pixels, no image at all: named, with the cause."""
    Image.fromarray(planted()).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), tmp_path / "volume.nii.gz")
    content = Path(dicom(tmp_path / "empty.dcm", planted().astype(np.int16))).read_bytes()
    (tmp_path / "empty.dcm").write_bytes(content[: content.rindex(b"\xe0\x7f\x10\x00")])
    for name in ("half.png", "volume.nii.gz", "empty.dcm"):
        assert f"{name}: " in fails(tmp_path, tmp_path / name)
    assert "2 are expected" in fails(tmp_path, tmp_path / "volume.nii.gz")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(Exception) as raised:
        infer(tmp_path / "nothing", tmp_path / "out")
    assert "nothing" in "".join(traceback.format_exception(raised.type, raised.value, raised.tb))
