"""Landmarks are read, paired and measured as they are, and the table says what they come to."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from anatomy_ssl.engines.landmarks import (
    choose_pairs,
    evaluate_landmarks,
    label_centroids,
    landmarks_of,
    read_landmarks,
    write_landmarks,
)
from anatomy_ssl.matching.matcher import Matches
from anatomy_ssl.metrics.landmarks import AXES, landmark_table
from tests.matching.bodies import ORIENTATIONS

AFFINE = nib.affines.from_matvec(np.diag([2.0, 3.0, 4.0]), [-10.0, -12.0, -20.0])


@pytest.fixture
def items(tmp_path: Path) -> list[dict]:
    """Three volumes of 20 x 30 x 40 mm with landmarks of their own."""
    made = []
    for k in range(3):
        path = tmp_path / f"p{k}.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((10, 10, 10), np.int16), AFFINE), path)
        marks = {"a": [0.0, 0.0, float(k)], "b": [float(2 * k), -5.0, 0.0]}
        made.append({"image": str(path), "subject": f"p{k}", "landmarks": marks})
    return made


def shift(source, target, points) -> Matches:
    """A matcher that is wrong by (3, -4, 0) mm."""
    return Matches(points + torch.tensor([3.0, -4, 0]), torch.full((len(points),), 0.5))


def test_a_table_of_landmarks(tmp_path: Path) -> None:
    file = tmp_path / "landmarks.csv"
    file.write_text("subject,landmark,x,y,z,in_field\np0,a,1,2,3,1\np0,b,4,5,6,0\np1,a,7,8,9,1\n")
    assert read_landmarks(file) == {"p0": {"a": [1, 2, 3]}, "p1": {"a": [7, 8, 9]}}
    file.write_text("subject,landmark,x,y,z\np0,a,1,2,\n")
    with pytest.raises(ValueError, match=r"landmarks\.csv, row 1"):
        read_landmarks(file)
    file.write_text("patient,landmark,x,y,z\np0,a,1,2,3\n")
    with pytest.raises(ValueError, match="no column 'subject'"):
        read_landmarks(file)


def test_landmarks_outside_of_the_volume_are_left_out(items, tmp_path: Path) -> None:
    items[0]["landmarks"]["far"] = [500.0, 0, 0]
    assert [list(marks) for marks in landmarks_of(items)] == [["a", "b"]] * 3
    file = tmp_path / "landmarks.csv"
    file.write_text("subject,landmark,x,y,z\np1,c,1,2,3\nsomeone,c,1,2,3\n")
    assert landmarks_of(items, file) == [{}, {"c": [1, 2, 3]}, {}]
    file.write_text("subject,landmark,x,y,z\nsomeone,c,1,2,3\n")
    with pytest.raises(ValueError, match="no landmark lies in any of 3 volumes"):
        landmarks_of(items, file)
    with pytest.raises(ValueError, match="not both"):
        landmarks_of(items, file, {"a": 1})


def test_centroids_of_labels_in_any_orientation(tmp_path: Path) -> None:
    """A structure that the edge cuts has none, nor has one that is absent."""
    values = np.zeros((10, 10, 10), np.uint8)
    values[2:5, 3, 4:6] = 1
    values[7:, 5, 5] = 2
    for k, orientation in enumerate(ORIENTATIONS[::5]):
        path = tmp_path / f"label{k}.nii.gz"
        nib.save(nib.Nifti1Image(values, AFFINE).as_reoriented(orientation), path)
        found = label_centroids({"image": "p", "label": str(path)}, {"whole": 1, "cut": 2, "absent": 3})
        assert list(found) == ["whole"]
        assert found["whole"] == pytest.approx([3 * 2 - 10, 3 * 3 - 12, 4.5 * 4 - 20], abs=1e-4)
    with pytest.raises(ValueError, match="no 'label' map"):
        label_centroids({"image": "p"}, {"whole": 1})


def test_pairs() -> None:
    subjects = ["a", "a", "b", "c"]
    everything = choose_pairs(subjects)
    assert len(everything) == 10 and (0, 1) not in everything and (2, 0) in everything and (0, 2) in everything
    assert choose_pairs(subjects, "next") == [(1, 2), (2, 3), (3, 0)]
    drawn = choose_pairs(subjects, 4, seed=1)
    assert len(set(drawn)) == 4 and set(drawn) <= set(everything) and drawn == choose_pairs(subjects, 4, seed=1)
    assert drawn != choose_pairs(subjects, 4, seed=2) and len(choose_pairs(subjects, 99)) == 10
    with pytest.raises(ValueError, match="at least two"):
        choose_pairs(["a", "a"])
    for wrong in ("some", 0, True, 2.5):
        with pytest.raises(ValueError, match="all, next or a number"):
            choose_pairs(subjects, wrong)


def test_errors_are_measured_in_the_target(items, tmp_path: Path) -> None:
    """p0 -> p1: landmark a truly moves by (0, 0, 1), the matcher says (3, -4, 0)."""
    rows = list(evaluate_landmarks(shift, items, landmarks_of(items), [(0, 1), (2, 0)]))
    assert [(r["source"], r["target"], r["landmark"]) for r in rows] == [
        *[("p0", "p1", "a"), ("p0", "p1", "b"), ("p2", "p0", "a"), ("p2", "p0", "b")]
    ]
    first = rows[0]
    assert first["error_mm"] == pytest.approx(26**0.5, abs=1e-3)
    assert [first[f"error_{axis}_mm"] for axis in AXES] == [3, 4, 1]
    assert (first["match_x"], first["true_z"], first["z"], first["score"]) == (3, 1, 0, 0.5)
    assert first["round_trip_mm"] == pytest.approx(10.0)
    assert "round_trip_mm" not in next(evaluate_landmarks(shift, items, landmarks_of(items), [(0, 1)], False))

    path = write_landmarks(tmp_path / "out", rows)
    assert path.is_file() and path.with_suffix(".md").is_file() and (tmp_path / "out" / "landmarks.csv").is_file()


def rows_of(errors: dict[str, list[float]]) -> list[dict]:
    """Rows of one landmark, target patient -> errors along the first axis."""
    zero = {"error_anterior_posterior_mm": 0.0, "error_superior_inferior_mm": 0.0}
    return [
        {"target": t, "landmark": "a", "error_mm": e, "error_right_left_mm": e, "round_trip_mm": e / 2, **zero}
        for t, values in errors.items()
        for e in values
    ]


def test_the_table() -> None:
    rows = rows_of({"p": [1, 2, 3], "q": [9, 10, 11]})
    (row,) = landmark_table(rows, within=10, round_trip_within=2)
    assert (row["n"], row["targets"], row["median_mm"], row["mean_mm"]) == (6, 2, 6, 6)
    assert row["within_10_mm"] == pytest.approx(5 / 6) and row["right_left_mm"] == 6
    assert row["round_trip_mm"] == 3 and row["round_trip_within_2_mm"] == pytest.approx(3 / 6)
    other = [r | {"landmark": "b"} for r in rows[:2]]
    assert [r["landmark"] for r in landmark_table(rows + other)] == ["all", "a", "b"]
    with pytest.raises(ValueError, match="no pair of patients"):
        landmark_table([])


def test_the_interval_is_over_patients() -> None:
    """Many landmarks of two patients tell little: whole patients are drawn."""
    (row,) = landmark_table(rows_of({"p": [1.0] * 50, "q": [9.0] * 50}))
    assert (row["low_mm"], row["high_mm"]) == (1, 9)
    (alone,) = landmark_table(rows_of({"p": [1.0, 9.0]}))
    assert np.isnan(alone["low_mm"]) and np.isnan(alone["high_mm"])
    many = {f"p{k}": [float(k % 7)] for k in range(40)}
    assert landmark_table(rows_of(many), seed=3) == landmark_table(rows_of(many), seed=3)
