"""Public data sets: built as published from empty or tiny files, read back as datalists."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from anatomy_ssl.data import public
from anatomy_ssl.data.datalist import load_datalist, write_datalist


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def write_csv(path: Path, header: str, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def counts(splits: dict[str, list[dict]]) -> dict[str, int]:
    return {name: len(items) for name, items in splits.items()}


def patients(items: list[dict]) -> set[str]:
    return {item["subject"] for item in items}


def make_brats(root: Path) -> Path:
    for n in range(20):
        name = f"BraTS2021_{n:05d}"
        touch(root, *(f"TrainingData/{name}/{name}_{m}.nii.gz" for m in ("t1", "t1ce", "t2", "flair", "seg")))
    return root


AUTOPET_CASES = [(f"{p:010x}", s, p % 2 and not s) for p in range(20) for s in range(1 + p % 3)]


def make_autopet(root: Path) -> Path:
    """Odd patients have a lesion in their first study only; patients have one to three studies."""
    rows = []
    for patient, study, lesion in AUTOPET_CASES:
        folder = f"FDG-PET-CT-Lesions/PETCT_{patient}/0{study + 1}-23-2003-NA-PET-CT Ganzkoerper"
        touch(root, *(f"{folder}/{m}.nii.gz" for m in ("CT", "CTres", "SUV", "PET", "SEG")))
        rows += [f"PETCT_{patient},{folder}/{s},{'LYMPHOMA' if lesion else 'NEGATIVE'}" for s in ("CT", "PET")]
    write_csv(root / "Clinical Metadata FDG PET_CT Lesions.csv", "Subject ID,File Location,diagnosis", *rows)
    return root


def make_flare22(root: Path) -> Path:
    for n in range(1, 11):
        touch(root, f"Training/FLARE22_LabeledCase50/images/FLARE22_Tr_{n:04d}_0000.nii.gz")
        touch(root, f"Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_{n:04d}.nii.gz")
        touch(root, f"Training/FLARE22_UnlabeledCase1-1000/Case_{n:05d}_0000.nii.gz")
        touch(root, f"Training/FLARE22_UnlabeledCase1001-2000/Case_{n + 1000:05d}_0000.nii.gz")
    return touch(root, *(f"Validation/FLARETs_{n:04d}_0000.nii.gz" for n in range(1, 4)))


def make_btcv(root: Path) -> Path:
    for n in range(1, 31):
        touch(root, f"RawData/Training/img/img{n:04d}.nii.gz", f"RawData/Training/label/label{n:04d}.nii.gz")
    return touch(root, *(f"RawData/Testing/img/img{n:04d}.nii.gz" for n in range(61, 81)))


def make_chestxray14(root: Path) -> Path:
    rows, names = [], []
    for patient in range(1, 31):
        for image in range(1 + patient % 3):
            name = f"{patient:08d}_{image:03d}.png"
            finding = ["No Finding", "Mass|Pleural_Thickening", "Hernia"][image]
            touch(root, f"images_{1 + patient % 12:03d}/images/{name}")
            rows.append(f'{name},{finding},{image},{patient},058Y,F,AP,"2992,2991",0.143')
            names.append(name)
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,Size,Spacing"
    write_csv(root / "Data_Entry_2017.csv", header, *rows)
    (root / "train_val_list.txt").write_text("\n".join(n for n in names if int(n[:8]) <= 20))
    (root / "test_list.txt").write_text("\n".join(n for n in names if int(n[:8]) > 20) + "\n")
    return root


CHEXPERT_HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(
    [
        *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
        *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
        *("Fracture", "Support Devices"),
    ]
)


def make_chexpert(root: Path) -> Path:
    for part, numbers in (("train", range(1, 21)), ("valid", range(64541, 64546))):
        rows = []
        for n in numbers:
            for view in ("frontal", "lateral"):
                path = f"{part}/patient{n:05d}/study1/view1_{view}.jpg"
                touch(root / "CheXpert-v1.0-small", path)
                side = f"{view.title()},{'AP' if view == 'frontal' else ''}"
                rows.append(f"CheXpert-v1.0-small/{path},Female,68,{side},,-1.0,1.0,0.0{',' * 9},1.0")
        write_csv(root / "CheXpert-v1.0-small" / f"{part}.csv", CHEXPERT_HEADER, *rows)
    return root


def make_shenzhen(root: Path) -> Path:
    touch(root, "ChinaSet_AllFiles/CXR_png/Thumbs.db", "ChinaSet_AllFiles/ClinicalReadings/CHNCXR_0001_0.txt")
    for n in range(1, 21):
        touch(root, f"ChinaSet_AllFiles/CXR_png/CHNCXR_{n:04d}_{int(n > 10)}.png")
    return touch(root, *(f"mask/CHNCXR_{n:04d}_{int(n > 10)}_mask.png" for n in range(1, 16)))


RSNA_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")


def make_rsna(root: Path) -> Path:
    names = [f"{n:08x}-14fd" for n in range(30)]
    touch(root, *(f"stage_2_train_images/{name}.dcm" for name in names))
    rows = [f"{name},{RSNA_CLASSES[n % 3]}" for n, name in enumerate(names)]
    write_csv(root / "stage_2_detailed_class_info.csv", "patientId,class", *rows, *rows[2::3])
    return root


def make_jsrt(root: Path) -> Path:
    names = [*(f"JPCLN{n:03d}" for n in range(1, 155)), *(f"JPCNN{n:03d}" for n in range(1, 94))]
    for name in names:
        touch(root, f"All247images/{name}.IMG")
        fold = "fold1" if int(name[5:]) % 2 else "fold2"
        touch(root, f"scratch/{fold}/landmarks/{name}.pfs")
        for organ in ("left lung", "right lung", "heart", "left clavicle", "right clavicle"):
            touch(root, f"scratch/{fold}/masks/{organ}/{name}.gif")
    return root


MAKERS = {
    "brats": make_brats,
    "autopet": make_autopet,
    "flare22": make_flare22,
    "btcv": make_btcv,
    "chestxray14": make_chestxray14,
    "chexpert": make_chexpert,
    "shenzhen": make_shenzhen,
    "rsna_pneumonia": make_rsna,
    "jsrt": make_jsrt,
}


def test_every_data_set_is_exported_and_tested():
    assert set(public.__all__) == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
class TestAll:
    def test_patients_are_apart_files_exist_and_the_list_reads_back(self, tmp_path, name):
        root = MAKERS[name](tmp_path / "data")
        splits = getattr(public, name)(root)
        sides = [patients(items) for items in splits.values()]
        assert all(sides)
        assert len(set.union(*sides)) == sum(map(len, sides))
        path = write_datalist(tmp_path / "list.json", splits, name=name)
        for split, items in splits.items():
            keys = [k for k, v in items[0].items() if str(v).startswith(str(tmp_path))]
            assert load_datalist(path, split, keys=keys) == items

    def test_seed_decides(self, tmp_path, name):
        root = MAKERS[name](tmp_path)
        make = getattr(public, name)
        again = [make(root, seed=3), make(str(root), seed=3)]
        assert again[0] == again[1]
        kwargs = {"labelled": True} if name == "flare22" else {}
        assert len({frozenset(patients(make(root, seed=s, **kwargs)["validation"])) for s in range(6)}) > 1

    def test_another_layout_is_told_what_was_expected_and_found(self, tmp_path, name):
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            getattr(public, name)(tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match=r"expected .* in .*, found nothing\."):
            getattr(public, name)(tmp_path)
        touch(tmp_path, "readme.md", "other/x.txt")
        with pytest.raises(FileNotFoundError, match=r"expected .* in .*, found other/, readme\.md\."):
            getattr(public, name)(tmp_path)


class TestBrats:
    def test_shares_and_items(self, tmp_path):
        splits = public.brats(make_brats(tmp_path), modality="t1ce")
        assert counts(splits) == {"training": 12, "validation": 4, "test": 4}
        for item in splits["training"]:
            assert item["image"].endswith(f"/{item['subject']}_t1ce.nii.gz")
            assert item["label"] == item["lesion"] == item["image"].replace("t1ce", "seg")

    def test_paper_numbers(self, tmp_path):
        sizes = {"training": 12, "validation": 7, "test": 1}
        assert counts(public.brats(make_brats(tmp_path), fractions=sizes)) == sizes

    def test_unknown_modality(self, tmp_path):
        with pytest.raises(ValueError, match="no modality 'pd'; give one of t1, t1ce"):
            public.brats(tmp_path, modality="pd")


class TestAutopet:
    affected = {f"PETCT_{p}" for p, _, lesion in AUTOPET_CASES if lesion}

    @pytest.mark.parametrize("below", ["", "FDG-PET-CT-Lesions"])
    def test_training_patients_have_no_lesions(self, tmp_path, below):
        splits = public.autopet(make_autopet(tmp_path) / below)
        assert len(patients(splits["training"])) == 10
        assert patients(splits["validation"]) | patients(splits["test"]) == self.affected
        assert len(patients(splits["validation"])) == 5
        assert sum(counts(splits).values()) == len(AUTOPET_CASES)

    @pytest.mark.parametrize("image", ["CT", "CTres", "SUV"])
    def test_image_is_chosen(self, tmp_path, image):
        item = public.autopet(make_autopet(tmp_path), image=image)["training"][0]
        assert Path(item["image"]).name == f"{image}.nii.gz"
        assert Path(item["lesion"]) == Path(item["image"]).with_name("SEG.nii.gz")

    def test_without_the_table_segmentations_decide(self, tmp_path):
        root = make_autopet(tmp_path)
        expected = public.autopet(root)
        next(root.glob("*.csv")).unlink()
        for path in root.glob("**/SEG.nii.gz"):
            patient, study = path.parent.parent.name, path.parent.name
            mask = np.zeros((3, 3, 3), np.uint8)
            mask[1, 1, 1] = patient in self.affected and study.startswith("01")
            nibabel.Nifti1Image(mask, np.eye(4)).to_filename(path)
        assert public.autopet(root) == expected

    def test_nnunet_form_leaves_psma_out(self, tmp_path):
        for n in range(6):
            case = f"fdg_{n:010x}_03-23-2003-NA-PET-CT Ganzkoerper_x"
            touch(tmp_path, f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz", f"labelsTr/{case}.nii.gz")
        touch(tmp_path, "imagesTr/psma_1_2018_0000.nii.gz", "labelsTr/psma_1_2018.nii.gz")
        rows = [f"PETCT_{n:010x},{'MELANOMA' if n > 2 else 'NEGATIVE'}" for n in range(6)]
        write_csv(tmp_path / "fdg_metadata.csv", "Subject ID,diagnosis", *rows)
        splits = public.autopet(tmp_path, image="SUV")
        assert patients(splits["training"]) == {f"PETCT_{n:010x}" for n in range(3)}
        assert all(i["image"].endswith("_0001.nii.gz") for s in splits.values() for i in s)

    def test_errors_name_the_cause(self, tmp_path):
        root = make_autopet(tmp_path)
        with pytest.raises(ValueError, match="no image 'PET'"):
            public.autopet(root, image="PET")
        table = next(root.glob("*.csv"))
        table.write_text("\n".join(line for line in table.read_text().splitlines() if "PETCT_0000000003" not in line))
        with pytest.raises(ValueError, match="no row for the patient 'PETCT_0000000003'"):
            public.autopet(root)
        table.unlink()
        with pytest.raises(ValueError, match=r"PETCT_0000000000/.*SEG\.nii\.gz: cannot be read"):
            public.autopet(root)
        next(root.glob("**/SEG.nii.gz")).unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 78 files are missing.*SEG\.nii\.gz"):
            public.autopet(root)


class TestFlare22:
    def test_pre_training(self, tmp_path):
        splits = public.flare22(make_flare22(tmp_path))
        assert counts(splits) == {"training": 20, "validation": 10, "test": 3}
        assert patients(splits["test"]) == {"FLARETs_0001", "FLARETs_0002", "FLARETs_0003"}
        assert not any("label" in item for item in splits["training"])

    def test_segmentation(self, tmp_path):
        root = touch(
            make_flare22(tmp_path), "Tuning/images/FLARETs_0009_0000.nii.gz", "Tuning/labels/FLARETs_0009.nii.gz"
        )
        splits = public.flare22(root, labelled=True)
        assert counts(splits) == {"training": 8, "validation": 2, "test": 1}
        for item in [i for s in splits.values() for i in s]:
            assert Path(item["label"]).name == f"{item['subject']}.nii.gz"

    def test_nnunet_form_and_a_missing_label(self, tmp_path):
        for n in range(5):
            touch(tmp_path, f"imagesTr/FLARE22_Tr_{n:04d}_0000.nii.gz", f"labelsTr/FLARE22_Tr_{n:04d}.nii.gz")
        assert counts(public.flare22(tmp_path, labelled=True)) == {"training": 4, "validation": 1}
        with pytest.raises(FileNotFoundError, match="UnlabeledCase1-1000"):
            public.flare22(tmp_path)
        (tmp_path / "labelsTr/FLARE22_Tr_0003.nii.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 10 files are missing.*labelsTr/FLARE22_Tr_0003\.nii\.gz"):
            public.flare22(tmp_path, labelled=True)


class TestBtcv:
    @pytest.mark.parametrize("below", ["", "RawData", "RawData/Training"])
    def test_labels_match(self, tmp_path, below):
        splits = public.btcv(make_btcv(tmp_path) / below)
        tests = {} if below.endswith("Training") else {"test": 20}
        assert counts(splits) == {"training": 24, "validation": 6, **tests}
        for item in splits["training"]:
            assert Path(item["label"]).name == Path(item["image"]).name.replace("img", "label")


class TestChestXray14:
    def test_official_test_and_labels(self, tmp_path):
        splits = public.chestxray14(make_chestxray14(tmp_path), validation_fraction=0.2)
        assert patients(splits["test"]) == {str(n) for n in range(21, 31)}
        assert len(patients(splits["validation"])) == 4
        by_name = {Path(i["image"]).name: i for s in splits.values() for i in s}
        assert set(by_name["00000001_000.png"]["labels"].values()) == {0}
        item = by_name["00000001_001.png"]
        assert [k for k, v in item["labels"].items() if v] == ["Mass", "Pleural_Thickening"]
        assert len(item["labels"]) == 14
        assert (item["view"], item["sex"]) == ("AP", "F")

    def test_part_of_the_archives(self, tmp_path):
        root = make_chestxray14(tmp_path)
        total = sum(counts(public.chestxray14(root)).values())
        for path in (root / "images_003" / "images").iterdir():
            path.unlink()
        with pytest.raises(
            FileNotFoundError, match=r"train_val_list.txt: 6 of \d+ listed images are missing.*allow_missing"
        ):
            public.chestxray14(root)
        assert sum(counts(public.chestxray14(root, allow_missing=True)).values()) == total - 9

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("Hernia", "Herniaa", "unknown finding 'Herniaa'"),
            ("00000002_000.png", "x.png", "no row for 00000002_000.png"),
        ],
    )
    def test_wrong_table(self, tmp_path, old, new, message):
        root = make_chestxray14(tmp_path)
        table = root / "Data_Entry_2017.csv"
        table.write_text(table.read_text().replace(old, new))
        with pytest.raises(ValueError, match=message):
            public.chestxray14(root)


class TestCheXpert:
    @pytest.mark.parametrize("below", ["", "CheXpert-v1.0-small"])
    def test_uncertain_stays_and_blank_is_zero(self, tmp_path, below):
        splits = public.chexpert(make_chexpert(tmp_path) / below)
        assert counts(splits) == {"training": 36, "validation": 4, "test": 10}
        for item in splits["training"]:
            assert list(item["labels"].values()) == [0, -1, 1, 0, *[0] * 9, 1]
            assert item["subject"] in item["image"].split("/")

    def test_frontal_only(self, tmp_path):
        splits = public.chexpert(make_chexpert(tmp_path), frontal_only=True)
        assert counts(splits) == {"training": 18, "validation": 2, "test": 5}
        assert {i["view"] for s in splits.values() for i in s} == {"Frontal"}

    def test_path_without_patient(self, tmp_path):
        root = make_chexpert(tmp_path)
        table = root / "CheXpert-v1.0-small" / "valid.csv"
        table.write_text(table.read_text().replace("patient64541", "p"))
        with pytest.raises(ValueError, match=r"valid\.csv: the path .*valid/p/study1"):
            public.chexpert(root)


class TestShenzhen:
    def test_label_is_the_last_digit(self, tmp_path):
        splits = public.shenzhen(make_shenzhen(tmp_path))
        assert counts(splits) == {"training": 14, "validation": 2, "test": 4}
        items = [i for s in splits.values() for i in s]
        assert all(i["labels"]["Tuberculosis"] == (int(i["subject"][-4:]) > 10) for i in items)
        assert sum("label" in i for i in items) == 15
        assert all(Path(i["label"]).name == f"{Path(i['image']).stem}_mask.png" for i in items if "label" in i)


class TestRsna:
    def test_three_classes(self, tmp_path):
        splits = public.rsna_pneumonia(make_rsna(tmp_path))
        assert counts(splits) == {"training": 24, "validation": 3, "test": 3}
        items = [i for s in splits.values() for i in s]
        assert all(list(i["labels"]) == list(RSNA_CLASSES) and sum(i["labels"].values()) == 1 for i in items)
        assert sum(i["labels"]["Lung Opacity"] for i in items) == 10

    def test_mapping_groups_by_true_patient(self, tmp_path):
        root = make_rsna(tmp_path)
        entries = [{"subset_img_id": f"{n:08x}-14fd", "img_id": f"{n // 3:08d}_00{n % 3}.png"} for n in range(30)]
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(entries))
        splits = public.rsna_pneumonia(root)
        assert {name: len(patients(items)) for name, items in splits.items()} == {
            "training": 8,
            "validation": 1,
            "test": 1,
        }
        assert counts(splits) == {"training": 24, "validation": 3, "test": 3}

    def test_unknown_class_and_missing_image(self, tmp_path):
        root = make_rsna(tmp_path)
        (root / "stage_2_train_images" / "00000004-14fd.dcm").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 30 listed images are missing.*00000004-14fd\.dcm"):
            public.rsna_pneumonia(root)
        table = root / "stage_2_detailed_class_info.csv"
        table.write_text(table.read_text().replace(",Normal", ",Fine"))
        with pytest.raises(ValueError, match="has the class 'Fine'"):
            public.rsna_pneumonia(root)


class TestJsrt:
    @pytest.mark.parametrize(("fold", "size"), [("odd", 124), ("even", 123)])
    def test_published_folds(self, tmp_path, fold, size):
        splits = public.jsrt(make_jsrt(tmp_path), test_fold=fold)
        assert len(splits["test"]) == size
        assert {int(i["subject"][5:]) % 2 for i in splits["test"]} == {int(fold == "odd")}
        items = [i for s in splits.values() for i in s]
        assert len(items) == 247
        assert sum(i["labels"]["Nodule"] for i in items) == 154
        assert Path(items[0]["left_clavicle"]).parts[-2:] == ("left clavicle", f"{items[0]['subject']}.gif")

    def test_png_is_preferred_and_masks_are_optional(self, tmp_path):
        names = [f"JPCLN{n:03d}" for n in range(1, 9)]
        touch(tmp_path, *(f"raw/{n}.IMG" for n in names), *(f"png/{n}.png" for n in names), "png/JPCLN009.PNG")
        items = [i for s in public.jsrt(tmp_path).values() for i in s]
        assert len(items) == 9
        assert {Path(i["image"]).suffix.lower() for i in items} == {".png"}
        assert not any("heart" in i for i in items)

    def test_incomplete_masks(self, tmp_path):
        root = make_jsrt(tmp_path)
        (root / "scratch/fold2/masks/heart/JPCNN040.gif").unlink()
        with pytest.raises(FileNotFoundError, match="JPCNN040 has no mask of the heart"):
            public.jsrt(root)
        with pytest.raises(ValueError, match="no fold '1'"):
            public.jsrt(root, test_fold="1")
