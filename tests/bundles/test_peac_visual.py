"""tokens.yaml and visual.yaml of the PEAC bundle, in seconds: radiographs and volumes of phantoms, a tiny encoder."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from anatomy_ssl.data.phantom import write_phantom_cohort
from anatomy_ssl.data.tokens import TokenMap
from anatomy_ssl.networks import SwinEncoder

CONFIGS = Path(__file__).parents[2] / "bundles" / "peac" / "configs"
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 4}
TINY: dict[str, Any] = {
    "grid_size": [4, 4],
    "slack": [2, 2],
    "encoder": {
        "_target_": "anatomy_ssl.networks.SwinEncoder",
        "spatial_dims": "@spatial_dims",
        "in_channels": 1,
        "drop_path_rate": 0.0,
        **SWIN,
    },
    "device": "$torch.device('cpu')",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms, two of them for test."""
    folder = tmp_path_factory.mktemp("phantoms")
    spacings = ((12.0, 12.0, 12.0),)
    write_phantom_cohort(folder, subjects=4, seed=0, spacings=spacings, radiograph_size=128, progress=False)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tiny encoder."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "encoder.pt"
    torch.save(SwinEncoder(2, 1, **SWIN).state_dict(), path)
    return path


def run(run_id: str, folder: Path, data: Path, checkpoint: Path, *names: str, **changes: Any) -> Path:
    """Run the bundle in this process; returns the output folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last.json").write_text(json.dumps({**TINY, **changes}))
    files = [str(CONFIGS / name) for name in ("tokens.yaml", *names)] + [str(folder / "last.json")]
    places = {"dataset_dir": str(data), "output_dir": str(folder / "out"), "checkpoint": str(checkpoint)}
    monai.bundle.create_workflow(config_file=files, run_id=run_id, **places).run()
    return folder / "out"


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tokens_of_a_cohort(cohort: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = run("tokens", tmp_path, cohort / "radiographs.json", checkpoint)
    assert len(list(output.iterdir())) == 4
    tokens = TokenMap.load(output / "phantom_001.npz")
    assert (tokens.tokens.dtype, tokens.tokens.shape, tokens.subject) == (np.float16, (16, 7, 7), "phantom_001")
    assert tokens.cell_size == pytest.approx(128 / 7)
    np.testing.assert_allclose(tokens.position[0, 0], (128 / 7 - 1) / 2, rtol=1e-5)
    assert tokens.to_mm(tokens.cell_size) == pytest.approx(380 / 7, rel=1e-4)
    again = run("tokens", tmp_path / "again", cohort / "radiographs.json", checkpoint, split="test")
    assert sorted(p.stem for p in again.iterdir()) == ["phantom_001", "phantom_003"]
    assert (again / "phantom_001.npz").read_bytes() == (output / "phantom_001.npz").read_bytes()


def test_tokens_of_a_folder_of_any_shapes(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k, size in enumerate([(90, 60), (60, 135), (20, 30)]):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"p{k}.png")
    output = run("tokens", tmp_path, folder, checkpoint, shifts=2, dtype="float32")
    grids = [TokenMap.load(output / f"p{k}.npz").grid for k in range(3)]
    assert grids == [(21, 13), (13, 31), (13, 21)]  # 7 cells of 8 on the short side, 2n - 1 tokens for n cells
    assert np.isnan(np.load(output / "p0.npz")["position_mm"]).all()


def test_tokens_of_volumes(cohort: Path, tmp_path: Path) -> None:
    small = {**SWIN, "patch_size": 2}
    torch.save(SwinEncoder(3, 1, **small).state_dict(), tmp_path / "encoder.pt")
    size = {"grid_size": [2, 2, 2], "slack": [1, 1, 1], "spacing": [12.0, 12.0, 12.0]}
    changes = {**size, "encoder": {**TINY["encoder"], **small}, "split": "test"}
    output = run("tokens", tmp_path / "run", cohort, tmp_path / "encoder.pt", "tokens_3d.yaml", **changes)
    tokens = TokenMap.load(output / "phantom_003.npz")
    assert tokens.tokens.shape[0] == 16 and tokens.position.shape == (*tokens.grid, 3)
    assert (tokens.position > -0.6).all() and (tokens.position < tokens.image_size - 0.4).all()
    mm = tokens.to_mm(tokens.position)
    assert mm is not None
    np.testing.assert_allclose(np.linalg.norm(mm[1, 0, 0] - mm[0, 0, 0]), 48, rtol=1e-3)


def kept(steps: list[dict[str, Any]], without: tuple[str, ...]) -> list[dict[str, Any]]:
    """The steps of a preparation, but some; nor does it matter that training keeps images as bytes."""
    parsed = [step if isinstance(step, str) else {k: v for k, v in step.items() if k != "crop"} for step in steps]
    named = [step for step in parsed if isinstance(step, str) or step["_target_"].split(".")[-1] not in without]
    # training keeps bytes, or 16 bits where it is told so
    return [step for step in named if isinstance(step, str) or "@bits" not in str(step.get("_disabled_"))]


@pytest.mark.parametrize(
    ("training", "tokens"), [("pretrain.yaml", "tokens.yaml"), ("pretrain_3d.yaml", "tokens_3d.yaml")]
)
def test_images_are_prepared_as_in_the_training(training: str, tokens: str) -> None:
    """But for what cuts them to one size, and what keeps track of their pixels."""
    first, second = (ConfigParser.load_config_file(CONFIGS / name) for name in (training, tokens))
    expected = kept(first["preprocessing"], ("SelectItemsd", "EnsureTyped", "SpatialPadd"))
    assert kept(second["preprocessing"], ("PixelFramed", "DivisiblePadd", "SpatialPadd")) == expected
    for key in ("intensity", "mean", "std", "grid_size"):
        assert first[key] == second[key], key
    if training == "pretrain.yaml":
        assert first["image_size"] == second["image_size"]
    else:
        assert first["encoder"] == second["encoder"] and first["spacing"] == second["spacing"]


def test_the_middle_of_the_prepared_image_is_what_training_sees(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (90, 60), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    item = {"image": str(tmp_path / "a.png"), "subject": "a"}
    images = []
    for name in ("pretrain.yaml", "tokens.yaml"):
        parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / name))
        parser.update({**TINY, "cell_size": 8})
        images.append(monai.transforms.Compose(parser.get_parsed_content("preprocessing"))(item)["image"])
    middle = monai.transforms.CenterSpatialCrop((56, 56))(images[1])
    byte = torch.as_tensor(images[0]).float() / 255
    torch.testing.assert_close(middle.as_tensor(), byte, atol=0.501 / 255, rtol=0)


def test_the_encoder_is_the_small_one() -> None:
    first, second = (ConfigParser.load_config_file(CONFIGS / name) for name in ("encoder_small.yaml", "tokens.yaml"))
    assert (first["grid_size"], first["slack"]) == (second["grid_size"], second["slack"])
    training = {key: value for key, value in first["encoder"].items() if key != "drop_path_rate"}
    assert training == {key: value for key, value in second["encoder"].items() if key != "drop_path_rate"}


def test_correspondence(cohort: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = run(
        "correspondence",
        tmp_path,
        cohort / "radiographs.json",
        checkpoint,
        "visual.yaml",
        split="all",
        groups=["lesion"],
    )
    assert {p.name for p in output.iterdir()} >= {"correspondence.png", "matches.csv", "correspondence.csv"}
    rows = read(output / "correspondence.csv")
    assert {row["method"] for row in rows} == {"trained", "copied coordinates", "random_0", "random_1", "random_2"}
    pairs = {(row["query"], row["target"]) for row in rows}
    assert len(pairs) == 12 and all(a != b for a, b in pairs)
    summary = {(row["pairs"], row["method"]): row for row in read(output / "correspondence_summary.csv")}
    assert {key[0] for key in summary} == {"all", "same lesion", "other lesion"}
    copied = summary["all", "copied coordinates"]
    assert float(copied["median_mm"]) == pytest.approx(float(copied["median_pixels"]) * 380 / 128, rel=1e-3)
    assert 0 < float(copied["median_cells"]) < 2
    random = [float(r["error_cells"]) for r in rows if r["method"] == "random_0"]
    trained = [float(r["error_cells"]) for r in rows if r["method"] == "trained"]
    assert random != trained


def test_correspondence_of_points_by_hand(cohort: Path, checkpoint: Path, tmp_path: Path) -> None:
    """On a folder, which has no landmarks."""
    given = {"split": "all", "queries": [[40, 50], [90, 60.5]], "pictures": ["phantom_002", "phantom_001.png"]}
    output = run("correspondence", tmp_path, cohort / "radiographs", checkpoint, "visual.yaml", **given)
    assert not (output / "correspondence.csv").exists() and (output / "correspondence.png").exists()
    rows = read(output / "matches.csv")
    assert [(row["point"], row["subject"], row["row"]) for row in rows] == [
        ("1", "phantom_001", "40.0"),
        ("2", "phantom_001", "90.0"),
    ]
    assert all(0 <= float(row[f"found_{axis}"]) <= 127 for row in rows for axis in ("row", "column"))


def test_landmarks(cohort: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = run("landmarks", tmp_path, cohort / "radiographs.json", checkpoint, "visual.yaml", split="all")
    table = {row["method"]: float(row["nearest_accuracy"]) for row in read(output / "landmarks.csv")}
    assert table.keys() == {"trained", "position alone", "random, mean of 3", "random, sd of 3"}
    assert table["position alone"] > 0.3 and (output / "landmarks.png").exists()


def test_cosegmentation(cohort: Path, checkpoint: Path, tmp_path: Path) -> None:
    changes = {"mask": "lungs", "clusters": 4}
    output = run("cosegmentation", tmp_path, cohort / "radiographs.json", checkpoint, "visual.yaml", **changes)
    table = {row["method"]: float(row["dice"]) for row in read(output / "cosegmentation.csv")}
    assert all(0 < value < 1 for value in table.values())
    assert (output / "cosegmentation.png").exists()
    plain = run("cosegmentation", tmp_path / "plain", cohort / "radiographs.json", checkpoint, "visual.yaml")
    assert [p.name for p in plain.iterdir()] == ["cosegmentation.png"]


@pytest.mark.parametrize(
    ("run_id", "changes", "message"),
    [
        ("correspondence", {}, r"phantom_\d+\.png has no landmarks in the datalist: give points"),
        ("correspondence", {"queries": [[5, 200]]}, r"the point \(5, 200\) lies outside of the image of 128 x 128"),
        ("correspondence", {"queries": [[5, 5]], "pictures": ["p1", "p2"]}, "there is no image of 'p1' among 4"),
        ("correspondence", {"queries": [[5, 5]], "pictures": ["phantom_001"]}, "needs two images"),
        ("landmarks", {}, "0 of 4 images have `landmarks`"),
        ("cosegmentation", {"clusters": 1000, "number": 2}, "clusters is 1000, but there are"),
        ("tokens", {"grid_size": [3, 3]}, r"was trained with grid_size \[4, 4\], this run has \[3, 3\]"),
    ],
)
def test_errors_are_told_in_one_line(
    cohort: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_id: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    names = () if run_id == "tokens" else ("visual.yaml",)
    content = {"model": torch.load(checkpoint, weights_only=True), "provenance": {"grid_size": [4, 4]}}
    torch.save(content, tmp_path / "encoder.pt")
    with pytest.raises(RuntimeError):
        run(run_id, tmp_path, cohort / "radiographs", tmp_path / "encoder.pt", *names, split="all", **changes)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " - ERROR - " in line]
    assert re.search(message, line)
