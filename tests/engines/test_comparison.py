"""compare: pretrained against scratch over seeds, by runs of a bundle."""

from __future__ import annotations

import ast
import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
from scipy.stats import ttest_rel

from anatomy_ssl.engines import comparison
from anatomy_ssl.engines.comparison import compare

CONFIG = {
    "imports": ["$import tests.engines.fake_training as fake"],
    "output_dir": "?",
    "seed": 0,
    "resume": False,
    "pretrained": "encoder.pt",
    "shift": 0.01,
    "fail": False,
    "training": ["$fake.train(@output_dir, @seed, @fail)"],
    "evaluating": ["$fake.evaluate(@output_dir, @seed, @pretrained, @shift)"],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A configuration and its overlay."""
    (tmp_path / "train.json").write_text(json.dumps(CONFIG))
    (tmp_path / "scratch.json").write_text(json.dumps({"pretrained": None}))
    return {"config": str(tmp_path / "train.json"), "scratch": str(tmp_path / "scratch.json")}


def literal(text: str) -> Any:
    """A value from the command line, as Fire reads it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds that a new process needs to start."""

    def call(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        options = {key.removeprefix("--"): literal(value) for key, value in zip(command[5::2], command[6::2])}
        monai.bundle.run(command[4], **options)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(comparison.subprocess, "run", call)


def run(files: dict[str, str], folder: Path, seeds: tuple[int, ...] = (0, 1), **options: Any) -> list[dict[str, str]]:
    """The rows of the table."""
    path = compare([files["config"]], {"scratch": files["scratch"]}, folder, seeds, options=options)
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("in_this_process")
def test_table_equals_the_formula(files: dict[str, str], tmp_path: Path) -> None:
    rows = run(files, tmp_path / "out", shift=0.02)
    trained, scratch, over_seeds, over_images = rows
    mean = 0.5 + 0.01 * 1.5 + 0.02 * 0.5
    assert [row["method"] for row in rows] == ["pretrained", "scratch", "pretrained - scratch", "pretrained - scratch"]
    assert float(scratch["mean"]) == pytest.approx(mean)
    assert float(trained["mean"]) == pytest.approx(mean + 0.05)
    assert float(trained["sd"]) == pytest.approx(0.02 / np.sqrt(2))
    assert (over_seeds["over"], over_seeds["n"]) == ("seeds", "2")
    gains = 0.02 * np.arange(1, 5)  # of each image
    assert (over_images["over"], over_images["n"]) == ("images", "4")
    assert float(over_images["mean"]) == pytest.approx(gains.mean(), abs=1e-4)
    assert float(over_images["p"]) == pytest.approx(ttest_rel(gains, np.zeros(4)).pvalue, rel=1e-2)
    assert float(over_images["ci_low"]) < gains.mean() < float(over_images["ci_high"])
    assert (tmp_path / "out" / "comparison.md").read_text().count("\n") == 6


@pytest.mark.usefixtures("in_this_process")
def test_goes_on_where_it_was_interrupted(files: dict[str, str], tmp_path: Path) -> None:
    first = run(files, tmp_path / "out")
    (tmp_path / "out" / "scratch" / "seed1" / "evaluation" / "metrics.csv").unlink()
    assert run(files, tmp_path / "out") == first
    counts = {p.parent: p.read_text().count("\n") for p in (tmp_path / "out").rglob("trained")}
    assert sorted(counts.values()) == [1, 1, 1, 2]


@pytest.mark.usefixtures("in_this_process")
def test_an_option_does_not_replace_what_the_baseline_sets(files: dict[str, str], tmp_path: Path) -> None:
    """Else --pretrained FILE would be given to scratch too, and pretrained be compared with itself."""
    given = {"pretrained": "mine.pt", "pretrained#part": "encoder", "shift": 0.02}
    assert comparison._without(given, files["scratch"]) == {"shift": 0.02}
    del given["pretrained#part"]
    assert run(files, tmp_path / "given", **given)[2] == run(files, tmp_path / "plain", shift=0.02)[2]


@pytest.mark.usefixtures("in_this_process")
def test_runs_of_other_options_are_not_mixed(files: dict[str, str], tmp_path: Path) -> None:
    run(files, tmp_path / "out")
    with pytest.raises(ValueError, match="other files or options"):
        run(files, tmp_path / "out", shift=0.5)


def test_runs_in_processes_of_their_own_and_a_failed_one_names_its_log(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pretrained/seed0/training\.log: ValueError: the training broke"):
        run(files, tmp_path / "out", fail=True)
    assert "the training broke" in (tmp_path / "out" / "pretrained" / "seed0" / "training.log").read_text()


def test_needs_seeds_and_a_baseline(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two different seeds"):
        run(files, tmp_path / "out", seeds=(1, 1))
    with pytest.raises(ValueError, match="baseline"):
        compare([files["config"]], {}, tmp_path / "out")


@pytest.mark.parametrize("edited", ["config", "scratch"])
@pytest.mark.usefixtures("in_this_process")
def test_files_that_were_edited_are_refused(edited: str, files: dict[str, str], tmp_path: Path) -> None:
    """Half of the table would be of the file as it was."""
    run(files, tmp_path / "out")
    path = Path(files[edited])
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "shift": 0.5}))
    with pytest.raises(ValueError, match=rf"holds runs of \S*{path.name} as it was before an edit.*another output_dir"):
        run(files, tmp_path / "out")
    path.write_text(before)
    run(files, tmp_path / "out")


@pytest.mark.parametrize("option", ["shiftt", "+shfit", "shft#deeper", "shft::deeper"])
def test_an_option_that_is_no_key_is_refused(option: str, files: dict[str, str], tmp_path: Path) -> None:
    """MONAI would add it, and nothing would read it."""
    with pytest.raises(
        ValueError, match=rf"--{re.escape(option)} is no key of .*scratch\.json; the nearest is --shift"
    ):
        run(files, tmp_path / "out", **{option: 0.5})
    assert not (tmp_path / "out").exists()


def test_keys_of_overlays_and_parts_of_keys_are_options(files: dict[str, str]) -> None:
    Path(files["scratch"]).write_text(json.dumps({"+deep#er": 1, "pretrained": None}))
    options = {"shift#part": 1, "shift::part": 1, "+shift": 1, "deep": 1, "deep#other": 1, "tracking": "mlflow"}
    comparison._check_options(options, list(files.values()))


def test_the_seed_is_not_an_option(files: dict[str, str], tmp_path: Path) -> None:
    """It would be overwritten by those of `seeds`."""
    with pytest.raises(ValueError, match="--seed is set for each run: give --seeds"):
        run(files, tmp_path / "out", seed=3)
