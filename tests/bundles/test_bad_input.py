"""Bad input ends a run with one line that names file and cause, or is left out where that is asked for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from tests.bundles.runs import CONFIGS, TINY, run, start


@pytest.fixture
def scans(cohort: Path, tmp_path: Path) -> Path:
    """A plain folder of five good scans and a truncated one."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for file in sorted((cohort / "images").iterdir())[:5]:
        shutil.copy(file, folder)
    whole = (folder / "phantom_001.nii.gz").read_bytes()
    (folder / "phantom_001b.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder


def test_one_bad_image_gives_one_error_line(scans: Path, tmp_path: Path) -> None:
    """Among all that MONAI's bundle prints on an error, one line says what is the matter."""
    process = start("training", tmp_path, scans)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (line,) = [line for line in output.splitlines() if " - ERROR - " in line]
    assert str(scans / "phantom_001b.nii.gz") in line
    assert "truncated" in line
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_bad_images_are_skipped_counted_and_listed(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line when it is met, and a list with the count before training."""
    four = nib.load(scans / "phantom_002.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([four.get_fdata()] * 2, -1), four.affine), scans / "phantom_002b.nii.gz")
    items = "$anatomy_ssl.data.load_datalist(@dataset_dir, 'training', validation_fraction=0)"
    good = "$anatomy_ssl.data.load_datalist(@dataset_dir, 'training', validation_fraction=0)[:1]"
    output = run("training", tmp_path, scans, epochs=1, train_items=items, val_items=good, on_bad_image="skip")
    printed = capsys.readouterr().out
    for name in ("phantom_001b", "phantom_002b"):
        assert len(re.findall(rf"skipped: \S*{name}.nii.gz: ", printed)) == 1
    (listing,) = re.findall(r"2 of 7 images were skipped:\n  (\S+): .*\n  (\S+): ", printed)
    assert [Path(file).name for file in listing] == ["phantom_001b.nii.gz", "phantom_002b.nii.gz"]
    assert " - ERROR - " not in printed
    assert (output / "encoder.pt").exists()


def test_entries_that_some_items_lack(cohort: Path, tmp_path: Path) -> None:
    """Public data sets have label maps, lesions and classes for some patients only; pre-training looks at none."""
    document = json.loads((cohort / "datalist.json").read_text())
    for split in ("training", "validation", "test"):
        for i, item in enumerate(document[split]):
            item.update({k: str(cohort / item[k]) for k in ("image", "label", "lesion")})
            for key in (("label",), ("lesion", "label"), ())[i % 3]:
                del item[key]
            if i % 2:
                item.update(labels={"healthy": 1}, age=40 + i, sex=None)
    file = tmp_path / "datalist.json"
    file.write_text(json.dumps(document))
    assert (run("training", tmp_path, file, epochs=1) / "encoder.pt").exists()
    crops = {"evaluation_crops": 2, "figures": []}
    assert (run("evaluating", tmp_path, file, ("evaluate.yaml",), **crops) / "evaluation" / "evaluation.csv").exists()
    changes = {key: TINY[key] for key in ("crop_size", "crop_spacing", "encoder", "device")}
    changes |= {"checkpoint": str(tmp_path / "out" / "encoder.pt"), "output_dir": str(tmp_path / "embeddings")}
    monai.bundle.run("embedding", config_file=str(CONFIGS / "embed.yaml"), dataset_dir=str(file), step=4, **changes)
    assert len(list((tmp_path / "embeddings").glob("*.npz"))) == 8


def test_a_diverging_loss_stops_the_run(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the terms, where the last good weights are, and what to do; the weights of the epoch before stay."""
    run("training", tmp_path, cohort, epochs=1)
    before = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["model"]
    capsys.readouterr()
    views = {"_target_": "tests.bundles.runs.not_a_number", "_mode_": "callable"}
    with pytest.raises(RuntimeError) as stopped:
        run("training", tmp_path, cohort, resume=True, views=views)
    assert isinstance(stopped.value.__cause__, FloatingPointError)
    message = str(stopped.value.__cause__)
    assert "the loss is not finite at epoch 2, iteration 4 (distance = nan, loss = nan)" in message
    assert f"the last checkpoint is in {tmp_path / 'out'}. Lower the learning rate" in message
    assert message in capsys.readouterr().out
    after = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_huge_learning_rate_stops_the_run(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as stopped:
        run("training", tmp_path, cohort, learning_rate=1e25)
    assert "the loss is not finite at epoch 1, iteration 2" in str(stopped.value.__cause__)


def test_a_folder_without_scans(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError) as refused:
        run("training", tmp_path, tmp_path / "empty")
    assert str(tmp_path / "empty") in repr(refused.value.__cause__)
