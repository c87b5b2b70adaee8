"""`python -m anatomy_ssl`: what the commands write, and how they fail."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anatomy_ssl.__main__ import main
from anatomy_ssl.data import load_datalist
from anatomy_ssl.data.embeddings import Embeddings


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    """Run the program in this process; returns its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["anatomy_ssl", *map(str, arguments)])
        try:
            return main()
        except SystemExit as end:
            return int(end.code or 0)

    return run


def touch(folder: Path, *names: str) -> Path:
    """Empty files; lists of images look at names only."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def patients(path: Path) -> dict[str, set[str]]:
    """Patients by split of a datalist."""
    splits = ("training", "validation", "test")
    return {split: {item["subject"] for item in load_datalist(path, split)} for split in splits}


def test_phantom(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cohort with the datalist that training reads; the same seed gives the same files."""
    for name in ("a", "b"):
        assert call("phantom", "--output", tmp_path / name, "--subjects", 2, "--seed", 3) == 0
    assert f"wrote {tmp_path / 'a'}" in capsys.readouterr().out
    images = sorted((tmp_path / "a" / "images").iterdir())
    assert len(images) == 2
    assert load_datalist(tmp_path / "a", "all")
    assert [f.read_bytes() for f in images] == [f.read_bytes() for f in sorted((tmp_path / "b" / "images").iterdir())]


def test_datalist_of_a_folder(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers of patients; both series of one patient on one side."""
    folder = touch(tmp_path / "scans", *(f"patient{i:02d}/{s}.nii.gz" for i in range(10) for s in ("ct_1", "ct_2")))
    options = ("--validation", 2, "--test", 3, "--order", "sorted", "--subject_pattern", r"(patient\d+)")
    assert call("datalist", "folder", folder, tmp_path / "list.json", *options) == 0
    assert "10 training, 4 validation, 6 test" in capsys.readouterr().out
    sides = patients(tmp_path / "list.json")
    assert [len(side) for side in sides.values()] == [5, 2, 3]
    assert len(set.union(*sides.values())) == 10


def test_datalist_of_a_table(call, tmp_path: Path) -> None:
    touch(tmp_path, *(f"scans/{i}.nii.gz" for i in range(10)))
    with open(tmp_path / "table.csv", "w", newline="") as file:
        rows = [["file", "who", "view"], *[[f"scans/{i}.nii.gz", f"p{i // 2}", "ab"[i // 8]] for i in range(10)]]
        csv.writer(file).writerows(rows)
    columns = ("--image", "file", "--subject", "who", "--where", "view=a")
    output = tmp_path / "list.json"
    assert call("datalist", "csv", tmp_path / "table.csv", output, *columns, "--validation", 1, "--test", 1) == 0
    sides = patients(output)
    assert set.union(*sides.values()) == {"p0", "p1", "p2", "p3"}
    assert [len(side) for side in sides.values()] == [2, 1, 1]


@pytest.mark.parametrize("names", ["Mass", "Mass,Nodule", "Pleural Effusion,Mass"])
def test_datalist_of_a_table_with_findings(call, tmp_path: Path, names: str) -> None:
    """One column or several; empty cells are null."""
    rows = ["image,patient_id,Mass,Nodule,Pleural Effusion"]
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"")
        rows.append(f"{number}.png,p{number},{number - 1},,1")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    options = ["--labels", names, "--validation", 0, "--test", 0]
    assert call("datalist", "csv", tmp_path / "table.csv", tmp_path / "list.json", *options) == 0
    values = {"Mass": [-1, 0, 1], "Nodule": [None] * 3, "Pleural Effusion": [1] * 3}
    items = load_datalist(tmp_path / "list.json", validation_fraction=0)
    assert [i["labels"] for i in items] == [{n: values[n][k] for n in names.split(",")} for k in range(3)]


def test_datalist_of_a_public_data_set(call, tmp_path: Path) -> None:
    names = [f"BraTS2021_{n:05d}" for n in range(10)]
    root = touch(
        tmp_path / "brats", *(f"{n}/{n}_{m}.nii.gz" for n in names for m in ("t1", "t1ce", "t2", "flair", "seg"))
    )
    assert call("datalist", "brats", root, tmp_path / "list.json", "--modality", "t2") == 0
    document = json.loads((tmp_path / "list.json").read_text())
    assert document["name"] == "brats"
    assert [len(document[split]) for split in ("training", "validation", "test")] == [6, 2, 2]
    assert all(item["image"].endswith("_t2.nii.gz") for item in document["training"])


def test_figure(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Methods by their names, from embeddings and from probe results."""
    rng = np.random.default_rng(0)
    position = rng.normal(size=(40, 3)) * 100
    for name in ("one", "two"):
        Embeddings(rng.normal(size=(40, 8)), position, np.repeat(["a", "b"], 20)).save(tmp_path / f"{name}.npz")
    with open(tmp_path / "probe.csv", "w", newline="") as file:
        rows = [(m, f, "auc", 0.6 + 0.1 * i + 0.01 * f) for i, m in enumerate(("one", "two")) for f in range(3)]
        csv.writer(file).writerows([("method", "fold", "metric", "value"), *rows])
    files = (f"ISImed={tmp_path / 'one.npz'}", tmp_path / "two.npz")
    options = ("--output", tmp_path / "figures", "--probe", tmp_path / "probe.csv", "--kind", "distances,pca,auc")
    assert call("figure", *files, *options) == 0
    drawn = {file.name for file in (tmp_path / "figures").iterdir()}
    assert drawn == {"distances.png", "pca_ISImed.png", "pca_two.png", "auc_per_fold.png"}
    assert capsys.readouterr().out.count("wrote ") == 4


ERRORS = {
    ("datalist", "folder", "nowhere", "list.json"): "nowhere is not a folder",
    ("datalist", "moon", ".", "list.json"): "unknown source 'moon'; choose folder, csv, autopet, brats",
    ("datalist", "brats", ".", "list.json"): "BraTS",
    ("datalist", "folder", ".", "list.json", "--taste", "3"): "taste",
    ("figure", "nowhere.npz", "--output", "out"): "There is no embeddings file at nowhere.npz",
    ("figure", "--output", "out"): "There is nothing to draw",
    ("phantom", "--output", "out", "--subjects", "many"): "many",
    ("inspect", "."): ". is a folder: give a file in it",
    ("inspect", "https://example.org/encoder.pt"): "https://example.org/encoder.pt is a URL: download it",
    ("inspect", "nowhere.pt"): "no weights at nowhere.pt: check the path, or train or download them first",
}


@pytest.mark.parametrize("arguments", ERRORS, ids=" ".join)
def test_errors_are_one_line(
    arguments: tuple[str, ...],
    call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 and the cause; `--debug` adds the traceback. Nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO: ")]
    assert line.startswith("error: ")
    assert ERRORS[arguments] in line
    assert call(*arguments, "--debug") == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_runs_nothing(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt `--subjects` must not write the default cohort first."""
    assert call("phantom", "--output", tmp_path / "out", "--subject", 2) == 2
    assert "--subject" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("fly",), ("datalist", "folder"), ("figure",)])
def test_wrong_usage(arguments: tuple[str, ...], call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    assert "Usage: anatomy_ssl" in capsys.readouterr().err


def test_help_of_every_command(call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    text = "".join(capsys.readouterr())
    for command, option in {"phantom": "--subjects", "datalist": "--subject_pattern", "figure": "--reference"}.items():
        assert command in text
        assert call(command, "--help") == 0
        assert option in "".join(capsys.readouterr())


def test_as_a_program(tmp_path: Path) -> None:
    """In a process of its own: exit code, and one line on the error stream."""
    command = [sys.executable, "-m", "anatomy_ssl", "datalist", "folder", str(tmp_path / "nowhere"), "list.json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        f"error: {tmp_path / 'nowhere'} is not a folder; give the folder that holds the scans."
    ]


def test_compare_refuses_before_it_trains(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt key would give the runs another meaning without a word."""
    (tmp_path / "train.json").write_text(json.dumps({"label_fraction": 1.0, "seed": 0}))
    (tmp_path / "scratch.json").write_text(json.dumps({"pretrained": None}))
    output = tmp_path / "runs"
    files = (tmp_path / "scratch.json", "--config_file", tmp_path / "train.json", "--output_dir", output)
    for option, said in (("--label_fracton", "the nearest is --label_fraction"), ("--seed", "give --seeds")):
        assert call("compare", *files, option, 1) == 2
        assert said in capsys.readouterr().err
    assert not output.exists()
