"""`python -m anatomy_ssl match` and `landmarks`: what they write, and how they fail."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from anatomy_ssl.__main__ import main
from anatomy_ssl.data import write_datalist
from anatomy_ssl.matching import PositionMatcher, RegistrationMatcher, WorldMatcher, build_matcher
from anatomy_ssl.matching.points_file import read_points
from tests.matching.bodies import AFFINE, write_body

CONFIGS = Path(__file__).parents[2] / "bundles" / "alice" / "configs"


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


@pytest.fixture
def scans(tmp_path: Path) -> list[str]:
    """A body and the same 20 mm to the left, and points in the first."""
    shift = np.array([-20.0, 0, 0])
    moved = AFFINE.copy()
    moved[:3, 3] += shift
    write_body(tmp_path / "a.nii.gz")
    write_body(tmp_path / "b.nii.gz", lambda x: x - shift, affine=moved)
    (tmp_path / "points.csv").write_text("name,x,y,z\nliver one,-30,10,-20\ncarina,0,0,40\n")
    return [str(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz")]


def test_match(call, scans: list[str], tmp_path: Path) -> None:
    """A table, markups for 3D Slicer of queries and matches, and a picture of each point."""
    pytest.importorskip("matplotlib")
    arguments = ("--points", tmp_path / "points.csv", "--output", tmp_path / "out", "--matcher", "registration")
    assert call("match", *scans, *arguments, "--store", tmp_path / "store", "--round_trip", "--iterations", 60) == 0
    with open(tmp_path / "out" / "matches.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["liver one", "carina"]
    for row in rows:
        assert float(row["match_x"]) == pytest.approx(float(row["x"]) - 20, abs=2.5)
        assert float(row["score"]) == 1 and float(row["round_trip_mm"]) < 4
    names, points = read_points(tmp_path / "out" / "matches.mrk.json")
    assert names == ["liver one", "carina"]
    assert points[0, 0].item() == pytest.approx(float(rows[0]["match_x"]))
    assert read_points(tmp_path / "out" / "queries.mrk.json")[1].tolist() == [[-30, 10, -20], [0, 0, 40]]
    assert {f.name for f in (tmp_path / "out").glob("*.png")} == {"match_liver_one.png", "match_carina.png"}
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_landmarks(call, scans: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"image": path, "subject": name} for path, name in zip(scans, "ab")]
    write_datalist(tmp_path / "list.json", {"test": items})
    (tmp_path / "landmarks.csv").write_text("subject,landmark,x,y,z\na,carina,0,0,40\nb,carina,-20,0,40\n")
    options = ("--landmarks", tmp_path / "landmarks.csv", "--matcher", "world", "--split", "test")
    assert call("landmarks", tmp_path / "list.json", "--output", tmp_path / "out", *options) == 0
    assert "| carina" in capsys.readouterr().out
    with open(tmp_path / "out" / "landmarks_table.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (float(row["median_mm"]), float(row["right_left_mm"]), row["n"]) == (20, 20, "2")
    assert call("landmarks", tmp_path / "list.json", "--output", tmp_path / "c", *options, "--align", "centre") == 0
    with open(tmp_path / "c" / "landmarks_table.csv", newline="") as stream:
        assert float(next(csv.DictReader(stream))["median_mm"]) < 1


def fails(call, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert call(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def test_errors_are_one_line(call, scans: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points, out = tmp_path / "points.csv", ("--output", tmp_path / "out")
    pair = ("match", *scans, "--points", points, *out)
    assert "--embedding" in fails(call, capsys, *pair)
    assert "--store" in fails(call, capsys, *pair, "--matcher", CONFIGS / "matcher_embedding.yaml")
    assert "unknown matcher" in fails(call, capsys, *pair, "--matcher", "magic")
    assert "no file" in fails(call, capsys, *pair, "--matcher", tmp_path / "none.yaml")
    assert "unexpected keyword" in fails(call, capsys, *pair, "--matcher", "world", "--sort", 1)
    assert "no similarity" in fails(call, capsys, *pair, "--matcher", "world", "--similarity")
    missing = ("match", scans[0], tmp_path / "no.nii.gz", "--points", points, *out, "--matcher", "world")
    assert "does not exist" in fails(call, capsys, *missing)
    points.write_text("x,y,z\n900,0,0\n")
    assert "outside of" in fails(call, capsys, *pair, "--matcher", "world")
    points.write_text("a,b\n1,2\n")
    assert "no column" in fails(call, capsys, *pair, "--matcher", "world")
    points.write_text("x,y,z\n0,0,0\n")
    far = AFFINE.copy()
    far[2, 3] += 1000
    write_body(tmp_path / "far.nii.gz", affine=far)
    apart = ("match", scans[0], tmp_path / "far.nii.gz", "--points", points, *out, "--matcher", "world")
    assert "do not overlap" in fails(call, capsys, *apart)
    assert not (tmp_path / "out").exists()
    write_datalist(tmp_path / "list.json", {"test": [{"image": scans[0], "subject": "a"}]})
    alone = ("landmarks", tmp_path / "list.json", *out, "--matcher", "world", "--labels")
    assert "name: value" in fails(call, capsys, *alone, "heart")


def test_matchers_of_the_bundle(tmp_path: Path) -> None:
    """Each file is a matcher by itself; what the command says goes before what the file says."""
    world = build_matcher(str(CONFIGS / "matcher_world.yaml"), align="centre")
    assert isinstance(world, WorldMatcher) and world.align == "centre"
    registration = build_matcher(str(CONFIGS / "matcher_registration.yaml"), store=tmp_path)
    assert isinstance(registration, RegistrationMatcher) and registration.store == tmp_path / "registrations"
    assert build_matcher(str(CONFIGS / "matcher_registration.yaml")).store is None
    position = build_matcher(str(CONFIGS / "matcher_position.yaml"), **{"position#step": 6})
    assert isinstance(position, PositionMatcher) and position.inferer.step == (6, 6, 6)
    embedding = build_matcher(str(CONFIGS / "matcher_embedding.yaml"), tmp_path / "embedding.pt", tmp_path)
    assert type(embedding).__name__ == "EmbeddingMatcher"
    with pytest.raises(ValueError, match="no key 'speed'"):
        build_matcher(str(CONFIGS / "matcher_world.yaml"), speed=1)
    (tmp_path / "other.yaml").write_text(json.dumps({"network": 1}))
    with pytest.raises(ValueError, match="no key matcher"):
        build_matcher(str(tmp_path / "other.yaml"))
