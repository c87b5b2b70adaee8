"""The phantom cohort is one anatomy, written deterministically, whose truth holds in the files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from anatomy_ssl.data import phantom
from anatomy_ssl.data.datalist import load_datalist
from anatomy_ssl.data.phantom import has_lesions, render_subject, split_of, write_phantom_cohort
from anatomy_ssl.data.phantom_anatomy import labels_at
from anatomy_ssl.data.phantom_labels import LABELS, LANDMARKS, ORGANS
from anatomy_ssl.data.phantom_lesions import draw_lesions
from anatomy_ssl.data.phantom_subject import draw_subject

Image = pytest.importorskip("PIL.Image", reason="radiographs need Pillow (pip install anatomy-ssl[figures])")

SUBJECTS = 5


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_cohort(
        tmp_path_factory.mktemp("phantom"), SUBJECTS, radiograph_size=128, progress=False
    ).parent


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def items_of(cohort: Path) -> list[dict[str, Any]]:
    datalist = json.loads((cohort / "datalist.json").read_text())
    return [item for split in ("training", "validation", "test") for item in datalist[split]]


def volumes(cohort: Path, key: str) -> Iterator[tuple[dict[str, Any], Any, np.ndarray]]:
    for item in items_of(cohort):
        image = nib.load(cohort / item[key])
        yield item, image, np.asarray(image.dataobj)


def centroid(image: nib.Nifti1Image, organ: str) -> np.ndarray:
    """World mm of the centre of an organ in an organ map."""
    voxels = np.argwhere(np.asarray(image.dataobj) == LABELS[organ])
    assert len(voxels) > 0, organ
    return nib.affines.apply_affine(image.affine, voxels.mean(axis=0))


def test_two_runs_write_the_same_bytes_and_more_subjects_change_none(cohort: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second run goes over the first
        write_phantom_cohort(tmp_path, 1, radiograph_size=128, progress=False)
        written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("phantom_*"))
        assert len(written) == 7
        for path in written:
            assert (tmp_path / path).read_bytes() == (cohort / path).read_bytes(), path
    assert not list(tmp_path.rglob("*.tmp"))


def test_another_seed_is_another_cohort() -> None:
    first, second = draw_subject(0, 0), draw_subject(0, 1)
    assert not np.allclose(first.warp.scale, second.warp.scale)
    assert not np.allclose(first.translation, second.translation)


def test_datalist_names_files_that_exist_and_tables_name_every_subject(cohort: Path) -> None:
    items = items_of(cohort)
    assert len(items) == SUBJECTS
    names = {item["subject"] for item in items}
    for item in items:
        for key in ("image", "label", "lesion"):
            assert not Path(item[key]).is_absolute()
            assert (cohort / item[key]).is_file()
    labels = json.loads((cohort / "datalist.json").read_text())["labels"]
    assert labels == {str(i): name for i, name in enumerate(ORGANS)}
    for table in ("subjects.csv", "landmarks.csv", "radiographs.csv"):
        assert {row["subject"] for row in read_table(cohort / table)} == names
    assert "never stands in" in " ".join((cohort / "README.txt").read_text().split())


def test_one_grid_a_subject_and_true_headers(cohort: Path) -> None:
    spacings, orientations, oblique, origins = set(), set(), [], []
    rows = {row["subject"]: row for row in read_table(cohort / "subjects.csv")}
    for item, image, hu in volumes(cohort, "image"):
        assert image.header.get_data_dtype() == np.int16
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        assert -1024 <= hu.min() < -950 and 300 < hu.max() <= 3071
        for key in ("label", "lesion"):
            other = nib.load(cohort / item[key])
            assert other.shape == image.shape
            np.testing.assert_array_equal(other.affine, image.affine)
        zooms = np.round(image.header.get_zooms(), 3)
        assert rows[item["subject"]]["spacing"] == "x".join(f"{s:g}" for s in zooms)
        assert rows[item["subject"]]["orientation"] == "".join(nib.aff2axcodes(image.affine))
        spacings.add(tuple(sorted(zooms.tolist())))
        orientations.add(nib.aff2axcodes(image.affine))
        oblique.append(nib.affines.obliquity(image.affine).max() > 1e-3)
        origins.append(item["origin"])
    assert len(spacings) == 3 and len(orientations) >= 3
    assert any(oblique) and not all(oblique)
    assert np.std(origins, axis=0).min() > 20


def test_landmarks_lie_in_their_organ(cohort: Path) -> None:
    truth: dict[str, list[dict[str, str]]] = {}
    for row in read_table(cohort / "landmarks.csv"):
        truth.setdefault(row["subject"], []).append(row)
    checked = 0
    for item, image, organs in volumes(cohort, "label"):
        assert [row["landmark"] for row in truth[item["subject"]]] == list(LANDMARKS)
        for row in truth[item["subject"]]:
            point = np.array([float(row[axis]) for axis in "xyz"])
            voxel = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), point)).astype(int)
            inside = bool((voxel >= 0).all() and (voxel < organs.shape).all())
            if row["in_field"] == "1":
                assert inside and ORGANS[organs[tuple(voxel)]] == LANDMARKS[row["landmark"]][0], row
                checked += 1
            if row["landmark"] == "carina":
                np.testing.assert_allclose(point, item["origin"], atol=1e-3)
    assert checked > 0.9 * SUBJECTS * len(LANDMARKS)


def test_landmarks_of_many_subjects_lie_in_their_organ_exactly() -> None:
    """Labels asked at the very points, so no voxel size blurs the answer."""
    for index in range(5, 17):
        subject = draw_subject(index, 3)
        points = np.concatenate([subject.place(o, np.array([p], dtype=float)) for o, p in LANDMARKS.values()])
        found = [ORGANS[value] for value in labels_at(subject, points)]
        assert found == [organ for organ, _ in LANDMARKS.values()], subject.name


def test_spacing_and_orientation_do_not_move_the_anatomy() -> None:
    subject = draw_subject(1, 0)
    first = render_subject(subject, (4, 4, 4), "RAS")["organs"]
    second = render_subject(subject, (3, 5, 6), "PIR")["organs"]
    assert nib.aff2axcodes(second.affine) == ("P", "I", "R")
    for organ in (
        "lung_right",
        "lung_left",
        "heart",
        "liver",
        "spleen",
        "stomach",
        "kidney_right",
        "kidney_left",
        "aorta",
    ):
        assert np.linalg.norm(centroid(first, organ) - centroid(second, organ)) < 1.5, organ


def test_sides_follow_ras(cohort: Path) -> None:
    """RAS+: x grows to the patient's right, y to the front, z to the head."""
    for _, image, _ in volumes(cohort, "label"):
        at = {organ: centroid(image, organ) for organ in ORGANS[4:27]}
        middle = at["spine"][0]
        for organ in ("liver", "lung_right", "kidney_right", "gallbladder"):
            assert at[organ][0] > middle + 15, organ
        for organ in ("spleen", "stomach", "lung_left", "kidney_left", "heart"):
            assert at[organ][0] < middle - 5, organ
        assert at["sternum"][1] > at["heart"][1] > at["spine"][1]
        assert at["clavicles"][2] > at["heart"][2] > at["liver"][2] > at["kidney_right"][2] > at["pelvis"][2]
        assert at["kidney_left"][2] > at["kidney_right"][2]


def test_tissues_have_their_hu(cohort: Path) -> None:
    ranges = {
        "fat": (-125, -75),
        "muscle": (30, 75),
        "lung_left": (-900, -650),
        "liver": (45, 125),
        "spine": (100, 500),
    }
    for item, _, hu in volumes(cohort, "image"):
        organs = np.asarray(nib.load(cohort / item["label"]).dataobj)
        for organ, (low, high) in ranges.items():
            assert low < np.median(hu[organs == LABELS[organ]]) < high, organ
        assert np.median(hu[organs == 0]) < -980


def test_warp_is_one_to_one_and_the_grid_agrees_with_points() -> None:
    rng = np.random.default_rng(0)
    for index in range(8):
        warp = draw_subject(index, 0).warp
        steepness = (np.linalg.norm(warp.amplitudes, axis=1) * np.linalg.norm(warp.waves, axis=1)).sum()
        assert steepness < 1 / warp.scale.max()
        atlas = rng.uniform((-180, -120, -400), (180, 130, 140), (100, 3))
        np.testing.assert_allclose(warp.to_atlas(warp.to_subject(atlas)), atlas, atol=1e-5)
    affine = np.eye(4)
    affine[:3] = np.array([[0.2, -9, 1, 30], [8, 0.4, 0, -90], [1, 0, -7, 100]])
    points = nib.affines.apply_affine(affine, np.indices((4, 5, 6)).reshape(3, -1).T)
    grid = np.stack([c.reshape(-1) for c in warp.grid(affine, (4, 5, 6))], axis=1)
    np.testing.assert_allclose(grid, warp.to_atlas(points), atol=1e-3)


def test_subjects_differ_by_millimetres_after_alignment_at_the_carina() -> None:
    """Otherwise copying coordinates would solve every matching task."""
    atlas = np.array([point for _, point in LANDMARKS.values()], dtype=float)
    shapes = np.stack([draw_subject(i, 0).warp.to_subject(atlas) for i in range(12)])
    shapes -= shapes[:, :1]
    spread = np.linalg.norm(shapes - shapes.mean(axis=0), axis=2).mean()
    assert 8 < spread < 40


def test_lesions_lie_in_their_hosts_in_half_of_the_subjects(cohort: Path) -> None:
    hosts = [LABELS[organ] for organ in ("lung_right", "lung_left", "liver", "spine", "kidney_right", "kidney_left")]
    rows = {row["subject"]: row for row in read_table(cohort / "subjects.csv")}
    for item, _, mask in volumes(cohort, "lesion"):
        assert set(np.unique(mask)) <= {0, 1}
        assert bool(mask.any()) == (int(rows[item["subject"]]["lesions"]) > 0)
        assert bool(mask.any()) == has_lesions(int(item["subject"][-3:]))
        organs = np.asarray(nib.load(cohort / item["label"]).dataobj)
        assert np.isin(organs[mask > 0], hosts).all()
    ill = [i for i in range(40) if has_lesions(i)]
    for split in ("training", "validation", "test"):
        members = [i for i in range(40) if split_of(i) == split]
        assert abs(len(set(ill) & set(members)) - len(members) / 2) <= 0.5


def test_lesions_have_the_stated_sizes() -> None:
    lesions = [
        (subject, lesion) for subject in (draw_subject(i, 5) for i in range(6)) for lesion in draw_lesions(subject)
    ]
    assert len({subject.index for subject, _ in lesions}) == 6
    sizes = [lesion.diameter(subject) for subject, lesion in lesions]
    assert min(sizes) > 7 and max(sizes) < 50


def test_training_subjects_can_be_free_of_lesions(tmp_path: Path) -> None:
    spacings = ((8.0, 8.0, 8.0),)
    write_phantom_cohort(tmp_path, 2, spacings=spacings, radiographs=False, training_lesions=False, progress=False)
    rows = read_table(tmp_path / "subjects.csv")
    assert [(row["split"], int(row["lesions"]) > 0) for row in rows] == [("training", False), ("test", True)]
    assert not (tmp_path / "radiographs").exists() and not (tmp_path / "radiographs.csv").exists()


@pytest.mark.parametrize("subjects", [4, 24, 60])
def test_split_covers_all_parts(subjects: int) -> None:
    parts = [split_of(i) for i in range(subjects)]
    assert parts.count("validation") >= 1 and parts.count("test") >= 2 and parts.count("training") >= 1
    if subjects == 60:
        assert [parts.count(p) for p in ("training", "validation", "test")] == [36, 9, 15]


def test_radiographs_show_what_the_tables_say(cohort: Path) -> None:
    points: dict[str, dict[str, np.ndarray]] = {}
    for row in read_table(cohort / "landmarks.csv"):
        pixel = np.array([float(row["column"]), float(row["row"])])
        points.setdefault(row["subject"], {})[row["landmark"]] = pixel
        assert (row["in_radiograph"] == "1") == bool(((pixel >= 0) & (pixel <= 127)).all())
    for row in read_table(cohort / "radiographs.csv"):
        image = np.asarray(Image.open(cohort / row["path"]))
        lungs = np.asarray(Image.open(cohort / row["lungs"]))
        assert image.shape == lungs.shape == (128, 128) and image.dtype == lungs.dtype == np.uint8
        assert set(np.unique(lungs)) == {0, 255}
        assert image[lungs > 0].mean() < image[:, 50:78][80:].mean() - 40  # lungs dark, what is under the heart bright
        at = points[row["subject"]]
        for side in ("right", "left"):
            middle = (at[f"lung_apex_{side}"] + at[f"diaphragm_dome_{side}"]) / 2
            column, line = np.rint(middle).astype(int)
            assert lungs[line, column] == 255
        column, line = np.rint(at["vertebra_T8"]).astype(int)
        assert lungs[line, column] == 0
        assert at["liver_dome"][0] < at["carina"][0] < at["heart_apex"][0]  # the patient's right on the left
        assert int(row["no_finding"]) == int(row["nodule"] == row["mass"] == "0")
        assert float(row["pixel_spacing_mm"]) == pytest.approx(380 / 128, abs=1e-4)


def test_heart_and_clavicles_lie_where_their_landmarks_do(cohort: Path) -> None:
    """Shadows in the radiograph, each over a part of the lungs."""
    marks = {(r["subject"], r["landmark"]): (int(float(r["row"]) + 0.5), int(float(r["column"]) + 0.5))
             for r in read_table(cohort / "landmarks.csv")}  # fmt: skip
    for row in read_table(cohort / "radiographs.csv"):
        name = row["subject"]
        heart, clavicles, lungs = (
            np.asarray(Image.open(cohort / kind / f"{name}.png")) for kind in ("hearts", "clavicles", "lungs")
        )
        for mask in (heart, clavicles):
            assert (mask.shape, mask.dtype) == ((128, 128), np.uint8)
            assert set(np.unique(mask)) == {0, 255}
        assert heart[marks[name, "heart_centre"]] == heart[marks[name, "heart_apex"]] == 255
        assert heart[marks[name, "carina"]] == heart[marks[name, "liver_dome"]] == 0
        for end in ("medial_right", "lateral_right", "medial_left", "lateral_left"):
            assert clavicles[marks[name, f"clavicle_{end}"]] == 255, end
        assert clavicles[marks[name, "heart_centre"]] == 0
        for mask in (heart, clavicles):  # both reach over the lungs and beyond
            assert 0.1 < (mask & lungs).mean() / mask.mean() < 0.5
        assert (clavicles[lungs.any(axis=1).nonzero()[0].mean().astype(int) :] == 0).all()  # in the upper half


def test_radiograph_and_world_landmarks_are_one_truth(cohort: Path) -> None:
    """The picture's plane is the subject's x and z: distances in it follow from the world positions and the pose."""
    for row in read_table(cohort / "radiographs.csv"):
        subject = draw_subject(int(row["subject"][-3:]), 0)
        marks = [r for r in read_table(cohort / "landmarks.csv") if r["subject"] == subject.name]
        world = np.array([[float(r[a]) for a in "xyz"] for r in marks])
        upright = (world - subject.translation) @ subject.rotation
        pixels = np.array([[float(r["column"]), float(r["row"])] for r in marks]) * float(row["pixel_spacing_mm"])
        np.testing.assert_allclose(pixels - pixels[0], -(upright - upright[0])[:, [0, 2]], atol=0.05)


def test_a_lesion_changes_the_radiograph_only_around_it() -> None:
    subject = next(s for s in (draw_subject(i, 0) for i in range(9)) if any("lung" in x.host for x in draw_lesions(s)))
    lesion = max((x for x in draw_lesions(subject) if "lung" in x.host), key=lambda x: float(x.radii.max()))
    with_lesion = phantom.project_subject(subject, [lesion], 128)
    without = phantom.project_subject(subject, [], 128)
    column, line = with_lesion.project(subject.warp.to_subject(lesion.centre[None]))[0]
    brighter = with_lesion.image.astype(float) - without.image
    rows, columns = np.indices(brighter.shape)
    reach = 1.6 * lesion.radii.max() / with_lesion.spacing
    near = np.hypot(rows - line, columns - column) < reach
    assert brighter[near].mean() > 4 * abs(brighter[~near].mean())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subjects": 0}, "subjects is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"spacings": ()}, "spacings is empty"),
        ({"spacings": ((4, 4, 0),)}, "not three positive"),
        ({"spacings": ((4, 4),)}, "not three positive"),
        ({"spacings": ((4, 4, float("nan")),)}, "not three positive"),
        ({"radiograph_size": 0}, "radiograph_size is 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_phantom_cohort(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_radiographs_datalist_says_what_the_tables_say(cohort: Path) -> None:
    """Same patients in the same splits; landmarks as rows and columns of pixels, only of those in the picture."""
    marks = {(row["subject"], row["landmark"]): row for row in read_table(cohort / "landmarks.csv")}
    table = {row["subject"]: row for row in read_table(cohort / "radiographs.csv")}
    seen = 0
    for split in ("training", "validation", "test"):
        items = load_datalist(cohort / "radiographs.json", split, keys=("image", "lungs"))
        assert [item["subject"] for item in items] == [name for name in table if table[name]["split"] == split]
        for item in items:
            row = table[item["subject"]]
            assert item["spacing"] == [pytest.approx(380 / 128, abs=1e-4)] * 2
            assert item["labels"]["lesion"] == int(row["no_finding"] == "0")
            for name, point in item["landmarks"].items():
                mark = marks[item["subject"], name]
                assert point == [float(mark["row"]), float(mark["column"])]
                assert mark["in_radiograph"] == "1"
            seen += len(item["landmarks"])
    assert seen == sum(row["in_radiograph"] == "1" for row in marks.values()) > 100
