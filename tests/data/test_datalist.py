"""Datalists: reading, checking, writing, splitting by patient, and making them from tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anatomy_ssl.data import datalist as module
from anatomy_ssl.data.datalist import load_datalist, write_datalist
from anatomy_ssl.data.splits import split_patients
from anatomy_ssl.data.table import datalist_from_csv


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Twenty scans with labels and lesions, as empty files."""
    folder = tmp_path / "scans"
    for n in range(20):
        for kind in ("images", "labels", "lesions"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"p{n:02d}.nii.gz").touch()
    return folder


def entry(n: int, /, **more: object) -> dict:
    return {"image": f"images/p{n:02d}.nii.gz", **more}


def write_json(folder: Path, document: object, name: str = "list.json") -> Path:
    (folder / name).write_text(json.dumps(document))
    return folder / name


def patients(items: list[dict]) -> set[str]:
    return {item["subject"] for item in items}


def random_items(seed: int) -> list[dict]:
    """Up to 60 images of up to 20 patients, in random order."""
    rng = np.random.default_rng(seed)
    owners = rng.integers(0, rng.integers(3, 21), size=rng.integers(30, 61))
    owners[:3] = [0, 1, 2]
    return [{"image": f"/data/i{i}.nii", "subject": f"p{o}"} for i, o in enumerate(rng.permutation(owners))]


class TestLoad:
    def test_paths_become_absolute_and_patients_are_derived(self, scans):
        path = write_json(scans, {"training": [entry(1, label="labels/p01.nii.gz", age=5)], "validation": [entry(2)]})
        assert load_datalist(path) == [
            {
                "image": str(scans / "images/p01.nii.gz"),
                "label": str(scans / "labels/p01.nii.gz"),
                "age": 5,
                "subject": "p01",
            }
        ]

    def test_decathlon_dataset_json_is_read(self, scans):
        document = {
            "name": "Hippocampus",
            "labels": {"0": "background"},
            "numTraining": 10,
            "training": [
                {"image": f"./images/p{n:02d}.nii.gz", "label": f"./labels/p{n:02d}.nii.gz"} for n in range(10)
            ],
            "test": [f"./images/p{n:02d}.nii.gz" for n in range(10, 20)],
        }
        write_json(scans, document, "dataset.json")
        test = load_datalist(scans, "test")
        assert patients(test) == {f"p{n}" for n in range(10, 20)}
        assert test[0]["image"] == str(scans / "images/p10.nii.gz")
        assert len(load_datalist(scans)) == 9
        assert len(load_datalist(scans, "validation")) == 1

    def test_datalist_json_goes_before_dataset_json(self, scans):
        write_json(scans, {"training": [entry(1)]}, "dataset.json")
        write_json(scans, {"training": [entry(2)]}, "datalist.json")
        assert patients(load_datalist(scans, validation_fraction=0)) == {"p02"}

    def test_dataset_json_of_another_form_does_not_stop_the_scan(self, scans):
        write_json(scans, {"channel_names": {"0": "CT"}, "numTraining": 20}, "dataset.json")
        assert len(load_datalist(scans, validation_fraction=0, pattern="images/*")) == 20

    @pytest.mark.parametrize("seed", range(5))
    def test_held_out_patients_are_disjoint_complete_and_repeatable(self, scans, seed):
        training, validation = (
            load_datalist(scans, split, seed=seed, validation_fraction=0.3, pattern="images/*")
            for split in ("training", "validation")
        )
        assert len(training) == 14
        assert len(validation) == 6
        assert patients(training) | patients(validation) == {f"p{n:02d}" for n in range(20)}
        again = load_datalist(scans, "validation", seed=seed, validation_fraction=0.3, pattern="images/*")
        assert again == validation

    def test_seed_changes_who_is_held_out(self, scans):
        chosen = {frozenset(patients(load_datalist(scans, "validation", seed=s, pattern="images/*"))) for s in range(8)}
        assert len(chosen) > 1

    def test_validation_of_the_list_is_left_alone(self, scans):
        path = write_json(scans, {"training": [entry(n) for n in range(10)], "validation": [entry(11)]})
        assert len(load_datalist(path)) == 10
        assert patients(load_datalist(path, "validation")) == {"p11"}

    def test_several_images_of_a_named_patient_are_legal(self, scans):
        path = write_json(scans, {"training": [entry(n, subject="a") for n in range(3)]})
        assert patients(load_datalist(path, validation_fraction=0)) == {"a"}

    def test_strings_that_happen_to_name_a_path_stay(self, scans):
        """Patient and centre are names even where a file or folder is called so; a map under another key is a path."""
        more = {
            "subject": "images/p02.nii.gz",
            "centre": "labels",
            "lungs": "labels/p01.nii.gz",
            "file": "gone.png",
            "n": 12,
        }
        path = write_json(scans, {"training": [entry(1, **more)]})
        (item,) = load_datalist(path, validation_fraction=0)
        assert {k: item[k] for k in more} == {**more, "lungs": str(scans / "labels/p01.nii.gz")}

    def test_own_split_names_and_dicom_file_lists(self, scans):
        files = [f"images/p{n:02d}.nii.gz" for n in range(3)]
        path = write_json(scans, {"fold_1": [{"image": files, "subject": 7}], "label_names": ["a", "b"]})
        (item,) = load_datalist(path, "fold_1")
        assert item == {"image": [str(scans / f) for f in files], "subject": "7"}

    def test_relative_path_of_the_list(self, scans, monkeypatch):
        write_json(scans, {"training": [entry(1)]})
        monkeypatch.chdir(scans)
        assert load_datalist("list.json", validation_fraction=0)[0]["image"] == str(scans / "images/p01.nii.gz")


class TestLoadErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{not json", "cannot be read as JSON"),
            ("[1, 2]", "not in the Decathlon form"),
            ('{"training": {"image": "a"}}', "not in the Decathlon form"),
            ('{"training": [{"label": "labels/p01.nii.gz"}]}', "item 0 of 'training' has no image"),
            ('{"training": ["images/p01.nii.gz", 3]}', "item 1 of 'training' has no image"),
            ('{"training": [{"image": []}]}', "item 0 of 'training' has no image"),
            ('{"training": []}', "has no 'training' split or it is empty"),
        ],
    )
    def test_form(self, scans, text, message):
        path = scans / "list.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            load_datalist(path)
        assert str(path) in str(error.value)

    def test_broken_list_in_a_folder_is_not_passed_over(self, scans):
        (scans / "datalist.json").write_text("{")
        with pytest.raises(ValueError, match=r"datalist\.json cannot be read"):
            load_datalist(scans)

    def test_missing_list(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="give a datalist JSON or a folder"):
            load_datalist(tmp_path / "absent.json")

    def test_absent_split_names_those_there_are(self, scans):
        path = write_json(scans, {"training": [entry(1)], "test": [entry(2)]})
        with pytest.raises(ValueError, match="has no 'fold_1' split or it is empty; it has training, test"):
            load_datalist(path, "fold_1")
        with pytest.raises(ValueError, match="it has training, test; give a validation_fraction above 0"):
            load_datalist(path, "validation", validation_fraction=0)

    def test_one_patient_cannot_be_split(self, scans):
        path = write_json(scans, {"training": [entry(1)]})
        with pytest.raises(ValueError, match=r"1 patients are too few .* Give validation_fraction 0"):
            load_datalist(path)

    @pytest.mark.parametrize("key", ["image", "label", "lesion"])
    def test_missing_files_are_counted_and_the_first_is_named(self, scans, key):
        items = [entry(n, label=f"labels/p{n:02d}.nii.gz", lesion=f"lesions/p{n:02d}.nii.gz") for n in range(4)]
        path = write_json(scans, {"training": items, "test": [entry(30)]})
        for n in (1, 3):
            (scans / f"{key}s" / f"p{n:02d}.nii.gz").unlink()
        with pytest.raises(FileNotFoundError, match=rf"2 of 12 files are missing, the first is .*{key}s/p01\.nii\.gz"):
            load_datalist(path, validation_fraction=0)

    def test_keys_say_what_must_exist(self, scans):
        path = write_json(scans, {"training": [entry(1, label="pneumonia", organs="labels/gone.nii.gz")]})
        assert load_datalist(path, validation_fraction=0, keys=("image",))[0]["label"] == "pneumonia"
        with pytest.raises(FileNotFoundError, match=r"gone\.nii\.gz"):
            load_datalist(path, validation_fraction=0, keys=("organs",))

    @pytest.mark.parametrize(("first", "second"), [("training", "training"), ("training", "test")])
    def test_image_listed_twice(self, scans, first, second):
        document = {first: [entry(0), entry(1)]}
        document.setdefault(second, []).append({"image": "./images/../images/p01.nii.gz", "subject": "p01"})
        path = write_json(scans, document)
        with pytest.raises(ValueError, match=rf"p01\.nii\.gz twice \(in '{first}' and '{second}'\)"):
            load_datalist(path)

    def test_patient_in_two_splits(self, scans):
        document = {"training": [entry(1, subject="anna")], "test": [entry(2, subject="anna")]}
        with pytest.raises(ValueError, match="patient 'anna' is in 'training' and 'test'"):
            load_datalist(write_json(scans, document))

    @pytest.mark.parametrize("known", [{}, {"subject": "p01"}])
    @pytest.mark.parametrize("split", ["training", "validation"])
    def test_two_images_derive_one_name(self, tmp_path, known, split):
        for site in ("siteA", "siteB"):
            (tmp_path / site).mkdir()
            (tmp_path / site / "p01.nii.gz").touch()
        document = {"training": [{"image": "siteA/p01.nii.gz"}]}
        document.setdefault(split, []).append({"image": "siteB/p01.nii.gz", **known})
        with pytest.raises(ValueError, match=r"siteA/p01.* and .*siteB/p01.*'p01'; give `subject`"):
            load_datalist(write_json(tmp_path, document))


class TestWrite:
    def test_round_trip_through_relative_paths(self, scans, tmp_path):
        items = load_datalist(scans, validation_fraction=0, pattern="images/*")
        items = [{**i, "label": i["image"].replace("images", "labels"), "origin": [1.5, 2, 3]} for i in items]
        items[0]["image"] = [items[0]["image"], items[0]["label"]]
        splits = split_patients(items)
        path = write_datalist(tmp_path / "lists" / "a.json", splits, name="x", label_names=["a"])
        document = json.loads(path.read_text())
        assert document["name"] == "x"
        assert document["training"][-1]["image"].startswith("../scans/images/")
        assert str(tmp_path) not in path.read_text()
        for split, expected in splits.items():
            assert load_datalist(path, split) == expected

    def test_list_moves_with_its_images(self, scans, tmp_path):
        write_datalist(scans / "datalist.json", {"training": [{"image": str(scans / "images/p01.nii.gz")}]})
        moved = scans.rename(tmp_path / "elsewhere")
        assert load_datalist(moved, validation_fraction=0)[0]["image"] == str(moved / "images/p01.nii.gz")

    def test_same_input_same_bytes_and_relative_paths_stay(self, tmp_path):
        splits = {"training": [entry(1, subject="/odd/name")], "test": []}
        first, second = (write_datalist(tmp_path / name, splits).read_bytes() for name in ("a.json", "b.json"))
        assert first == second
        assert json.loads(first) == splits

    def test_failure_leaves_the_old_list_and_no_litter(self, tmp_path, monkeypatch):
        path = write_datalist(tmp_path / "a.json", {"training": [entry(1)]})
        before = path.read_bytes()
        with pytest.raises(TypeError):
            write_datalist(path, {"training": [entry(2, bad=object())]})
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_datalist(path, {"training": [entry(2)]})
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def test_a_patient_on_both_sides_is_not_written(self, tmp_path):
        with pytest.raises(ValueError, match="patient 'a' is in"):
            write_datalist(tmp_path / "a.json", {"training": [entry(1, subject="a")], "test": [entry(2, subject="a")]})
        assert not list(tmp_path.iterdir())


class TestSplit:
    @pytest.mark.parametrize("seed", range(30))
    def test_patients_are_on_one_side_and_all_images_are_kept(self, seed):
        items = random_items(seed)
        splits = split_patients(items, seed=seed)
        assert list(splits) == ["training", "validation", "test"]
        sides = [patients(split) for split in splits.values()]
        assert all(sides)
        assert len(set.union(*sides)) == sum(map(len, sides)) == len(patients(items))
        assert sorted(i["image"] for s in splits.values() for i in s) == sorted(i["image"] for i in items)
        assert all(split == [i for i in items if i["subject"] in side] for split, side in zip(splits.values(), sides))

    @pytest.mark.parametrize("seed", range(10))
    def test_split_does_not_depend_on_the_order_of_images(self, seed):
        items = random_items(seed)
        shuffled = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
        for name, split in split_patients(items, seed=seed).items():
            assert patients(split_patients(shuffled, seed=seed)[name]) == patients(split)

    @pytest.mark.parametrize("total", range(3, 40))
    def test_sizes_are_within_one_patient_of_their_shares(self, total):
        items = [{"image": f"{n}.nii", "subject": f"{n}"} for n in range(total)]
        fractions = {"training": 0.6, "validation": 0.2, "test": 0.2}
        splits = split_patients(items, fractions)
        for name, share in fractions.items():
            assert len(splits[name]) >= 1
            assert abs(len(splits[name]) - share * total) < 1 + 1e-9

    def test_sorted_holds_out_the_last(self):
        items = [{"image": f"{n}.nii", "subject": f"p{n:02d}"} for n in (5, 3, 1, 4, 2, 0)]
        splits = split_patients(items, {"training": 1.0, "test": 2}, by="sorted")
        assert [i["subject"] for i in splits["training"]] == ["p03", "p01", "p02", "p00"]
        assert [i["subject"] for i in splits["test"]] == ["p05", "p04"]
        assert split_patients(items, {"training": 4, "test": 2}, by="sorted") == splits

    def test_zero_share_is_empty(self):
        items = [{"image": f"{n}.nii", "subject": f"{n}"} for n in range(4)]
        splits = split_patients(items, {"training": 1.0, "validation": 0.0, "test": 0})
        assert [len(s) for s in splits.values()] == [4, 0, 0]

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"training": 0.9, "test": 0.2}, "add up to 1"),
            ({"training": 1, "test": 2}, "do not take in all 4 patients"),
            ({"training": 1.0, "test": 4}, "too few"),
            ({"training": 3, "test": 2}, "too few"),
            ({"training": 1.2, "test": -0.2}, "negative"),
            ({f"fold_{n}": 0.2 for n in range(5)}, "too few"),
        ],
    )
    def test_sizes_that_do_not_fit(self, sizes, message):
        items = [{"image": f"{n}.nii", "subject": f"{n}"} for n in range(4)]
        with pytest.raises(ValueError, match=message):
            split_patients(items, sizes)

    def test_unknown_order_and_unnamed_patient(self):
        with pytest.raises(ValueError, match="by='size' is not known"):
            split_patients([{"image": "a", "subject": "a"}], by="size")
        with pytest.raises(ValueError, match=r"a\.nii has no `subject`"):
            split_patients([{"image": "a.nii"}])


class TestTable:
    @pytest.fixture
    def table(self, scans) -> Path:
        rows = ["patient_id,image,organs,age,sex,Mass,Nodule"]
        rows += [f"00{n},images/p{n:02d}.nii.gz,labels/p{n:02d}.nii.gz,{n}.5,{'FM'[n % 2]},{n % 2},0" for n in range(6)]
        rows.append("007,images/p07.nii.gz,,,F,1,1")
        (scans / "cases.csv").write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
        return scans / "cases.csv"

    def test_columns_become_entries(self, table):
        items = datalist_from_csv(table, keys={"label": "organs", "age": "age"}, labels=("Mass", "Nodule"))
        assert len(items) == 7
        assert items[1] == {
            "image": str(table.parent / "images/p01.nii.gz"),
            "subject": "001",
            "label": str(table.parent / "labels/p01.nii.gz"),
            "age": 1.5,
            "labels": {"Mass": 1, "Nodule": 0},
        }
        assert "label" not in items[6]
        assert "age" not in items[6]

    def test_an_empty_cell_is_a_label_that_is_not_known(self, table):
        items = datalist_from_csv(table, labels=("age", "Mass"))
        assert items[5]["labels"] == {"age": 5.5, "Mass": 1}
        assert items[6]["labels"] == {"age": None, "Mass": 1}

    def test_where(self, table):
        assert [i["subject"] for i in datalist_from_csv(table, where="sex=F")] == ["000", "002", "004", "007"]
        assert [i["subject"] for i in datalist_from_csv(table, where="sex=F, Mass=1")] == ["007"]
        assert datalist_from_csv(table, subject=None, where="age=2.5")[0]["subject"] == "p02"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"image": "path"}, "has no column 'path'; it has patient_id, image"),
            ({"where": "size=1"}, "has no column 'size'"),
            ({"where": "sex=X"}, "No row of .* has sex=X"),
            ({"where": "__import__('os')"}, "write column=value"),
            ({"labels": ("sex",)}, "label 'sex' of images/p00.nii.gz is 'F'; give a number"),
            ({"image": "organs", "subject": None}, r"a row has no 'organs' \(007, images/p07"),
        ],
    )
    def test_errors(self, table, arguments, message):
        with pytest.raises(ValueError, match=message):
            datalist_from_csv(table, **arguments)

    def test_missing_files(self, table):
        (table.parent / "labels/p03.nii.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 13 files are missing, the first is .*labels/p03"):
            datalist_from_csv(table, keys={"label": "organs"})
        with pytest.raises(FileNotFoundError, match="is not there"):
            datalist_from_csv(table.parent / "absent.csv")


@pytest.mark.real_data
class TestRealData:
    def test_head_and_neck(self, real_data, tmp_path):
        items = datalist_from_csv(
            real_data / "ct3d_headneck" / "cases.csv", keys={"label": "organs", "lesion": "target"}, where="long_fov=1"
        )
        splits = split_patients(items, {"training": 1.0, "validation": 15}, by="sorted")
        assert [len(s) for s in splits.values()] == [46, 15]
        path = write_datalist(tmp_path / "list.json", splits)
        assert load_datalist(path, "validation") == splits["validation"]

    def test_radiographs(self, real_data):
        table = real_data / "cxr" / "labels.csv"
        items = datalist_from_csv(table, image="path", labels=("Pneumonia", "Hernia"), keys={"view": "view"})
        assert len(items) == len(patients(items)) == 520
        assert sum(i["labels"]["Pneumonia"] for i in items) == 260

    def test_folders(self, real_data):
        for folder, count in (("ct3d_headneck", 90), ("mri3d_hippocampus", 190), ("cxr", 520)):
            assert len(load_datalist(real_data / folder, validation_fraction=0)) == count


def test_public_names_are_there():
    assert all(hasattr(module, name) for name in module.__all__)


def test_an_empty_validation_list_is_as_none(tmp_path: Path) -> None:
    """The form that the documentation shows."""
    for i in range(4):
        (tmp_path / f"p{i}.nii.gz").touch()
    items = [{"image": f"p{i}.nii.gz", "subject": f"p{i}"} for i in range(4)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items, "validation": [], "test": []}))
    assert len(load_datalist(tmp_path / "list.json", "validation")) == 1
    assert len(load_datalist(tmp_path / "list.json", "training")) == 3
    assert len(load_datalist(tmp_path / "list.json", "all")) == 4


def test_origins_are_given_to_all_or_none(tmp_path: Path) -> None:
    """Positions of the others would be in another frame."""
    for i in range(4):
        (tmp_path / f"p{i}.nii.gz").touch()
    items = [{"image": f"p{i}.nii.gz", "subject": f"p{i}"} for i in range(4)]
    items[0]["origin"] = [1.0, 2.0, 3.0]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    with pytest.raises(ValueError, match="has no `origin`, as"):
        load_datalist(tmp_path / "list.json", "all")
