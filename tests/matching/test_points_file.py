"""Files of points say where points are, in the frame that they name, or why they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anatomy_ssl.matching.points_file import read_points, write_markups

POINTS = torch.tensor([[1.5, -2.25, 3.0], [-100.125, 0.0, 55.5]])


def test_a_table(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("z,name,x,y,comment\n3,carina,1.5,-2.25,a\n55.5,,-100.125,0,b\n", encoding="utf-8")
    names, points = read_points(file)
    assert names == ["carina", "2"] and torch.equal(points, POINTS)


@pytest.mark.parametrize("heading", ["landmark", "label"])
def test_other_headings_of_names(tmp_path: Path, heading: str) -> None:
    (tmp_path / "p.csv").write_text(f"{heading},x,y,z\ncarina,1,2,3\n")
    assert read_points(tmp_path / "p.csv")[0] == ["carina"]


def test_markups_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = write_markups(tmp_path / "p.mrk.json", ["a", "b"], POINTS, ["score 1", "score 0.5"])
    names, points = read_points(path)
    assert names == ["a", "b"] and torch.equal(points, POINTS)
    (markup,) = json.loads(path.read_text())["markups"]
    assert markup["type"] == "Fiducial" and markup["coordinateSystem"] == "RAS"
    assert [c["description"] for c in markup["controlPoints"]] == ["score 1", "score 0.5"]


@pytest.mark.parametrize("system", ["LPS", None])
def test_markups_in_lps_are_turned(tmp_path: Path, system: str | None) -> None:
    """3D Slicer writes LPS by default."""
    path = write_markups(tmp_path / "p.mrk.json", ["a", "b"], POINTS)
    document = json.loads(path.read_text())
    document["markups"][0]["coordinateSystem"] = system
    if system is None:
        del document["markups"][0]["coordinateSystem"]
    path.write_text(json.dumps(document))
    assert torch.equal(read_points(path)[1], POINTS * torch.tensor([-1.0, -1, 1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,x,y\na,1,2\n", "no column 'z'"),
        ("x,y,z\n1,2,here\n", "row 1: x, y and z are '1', '2', 'here'"),
        ("x,y,z\n1,2,nan\n", "three numbers"),
        ("x,y,z\n", "no points"),
        ("name,x,y,z\na,1,2,3\na,1,2,4\n", "two points with the name 'a'"),
    ],
)
def test_bad_tables(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_points(tmp_path / "p.csv")
    assert "p.csv" in str(error.value)


@pytest.mark.parametrize(
    "content", ["{}", "[1]", "not json", '{"markups": [{"controlPoints": [{"position": [1, 2]}]}]}']
)
def test_bad_markups(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.mrk.json").write_text(content)
    with pytest.raises(ValueError, match=r"p\.mrk\.json"):
        read_points(tmp_path / "p.mrk.json")


def test_no_file(tmp_path: Path) -> None:
    for name in ("p.csv", "p.mrk.json"):
        with pytest.raises(FileNotFoundError, match=name):
            read_points(tmp_path / name)
