"""Alice on scans as clinics have them: what cannot be used is named, or handled as the config says."""

from __future__ import annotations

import json
import logging
import re
import traceback
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.bundles.alice_runs import train, workflow


def write(path: Path, number: int, offset: float = 0.0, convert: Any = lambda hu: hu) -> dict[str, str]:
    """A CT of a body with bone and fat in air, in HU unless converted, `offset` mm up; returns its item."""
    rng = np.random.default_rng(number)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (18, 16, 20)], indexing="ij")
    distance = sum(a**2 for a in axes)
    hu = np.where(distance < 0.8, 40.0, -1000.0)
    hu[distance < 0.1] = 900
    hu[(distance > 0.6) & (distance < 0.8)] = -100
    affine = np.diag([10.0, 10.0, 10.0, 1.0])
    affine[2, 3] = offset
    nib.save(nib.Nifti1Image(convert(hu + rng.normal(0, 15, hu.shape)).astype(np.float32), affine), path)
    return {"image": str(path), "subject": path.name.split(".")[0]}


def unsigned(hu: np.ndarray) -> np.ndarray:
    return (hu + 1024).clip(min=0)


def datalist(folder: Path, items: list[dict[str, str]]) -> Path:
    """Training on the items, validation on two more."""
    good = [write(folder / f"val_{i}.nii.gz", 10 + i) for i in range(2)]
    (folder / "list.json").write_text(json.dumps({"training": items, "validation": good}))
    return folder / "list.json"


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_a_single_patient_is_refused_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    data = datalist(tmp_path, [write(tmp_path / "alone.nii.gz", 0)])
    with pytest.raises(RuntimeError) as error:
        train(tmp_path / "run", data)
    assert re.search(r"no other patient to pair .*alone\.nii\.gz .*two patients at least", told(error.value))
    assert train(tmp_path / "again", data, fallback="same_volume").joinpath("encoder.pt").exists()


def test_a_single_validation_patient_has_partners_of_training(tmp_path: Path) -> None:
    items = [write(tmp_path / f"scan_{i}.nii.gz", i) for i in range(3)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    run = workflow(tmp_path / "run", tmp_path / "list.json", val_pairs=3)
    run.run()
    metrics = run.parser.get_parsed_content("validate#evaluator").state.metrics
    assert metrics["same_volume_share"] == 0


@pytest.mark.parametrize(
    ("convert", "cause"),
    [(unsigned, "stored without their intercept.*units shift"), (lambda hu: (hu + 1000) / 2000, "no Hounsfield units")],
)
def test_units_that_are_not_hounsfield_are_named(tmp_path: Path, convert: Any, cause: str) -> None:
    items = [write(tmp_path / f"scan_{i}.nii.gz", i) for i in range(3)]
    items.append(write(tmp_path / "bad.nii.gz", 3, convert=convert))
    data = datalist(tmp_path, items)
    with pytest.raises(RuntimeError) as error:
        train(tmp_path / "run", data)
    assert re.search(rf"bad\.nii\.gz: .*{cause}", told(error.value))
    run = workflow(tmp_path / "skip", data, on_bad_image="skip")
    run.run()
    assert len(run.parser.get_parsed_content("train#scans")) == 3


def test_unsigned_units_are_shifted_where_the_config_says_so(tmp_path: Path) -> None:
    """To the very weights that the same scans in HU give."""
    found = []
    for kind, convert in (("hu", lambda hu: hu.clip(min=-1024).round()), ("unsigned", lambda hu: unsigned(hu).round())):
        folder = tmp_path / kind
        folder.mkdir()
        items = [write(folder / f"scan_{i}.nii.gz", i, convert=convert) for i in range(4)]
        output = train(folder / "run", datalist(folder, items), units="shift")
        found.append(torch.load(output / "encoder.pt", weights_only=True)["model"])
    assert all(torch.allclose(value, found[1][name], atol=1e-6) for name, value in found[0].items())


def test_no_overlap_of_fields_of_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the world matcher nothing is in common: the same volume twice, counted and said once; or an error."""
    items = [write(tmp_path / f"scan_{i}.nii.gz", i, offset=1000.0 * i) for i in range(3)]
    data = tmp_path / "list.json"
    data.write_text(json.dumps({"training": items, "validation": items[:2]}))
    data.write_text(json.dumps({"training": items[:2], "validation": [items[2], write(tmp_path / "v.nii.gz", 4)]}))
    run = workflow(tmp_path / "run", data, names=("matcher_world.yaml",))
    run.run()
    metrics = run.parser.get_parsed_content("validate#evaluator").state.metrics
    assert (metrics["fallback_share"], metrics["same_volume_share"]) == (1, 1)
    assert capsys.readouterr().out.count("nothing in common") == 2  # training and validation
    with pytest.raises((RuntimeError, ValueError)) as error:
        train(tmp_path / "raise", data, names=("matcher_world.yaml",), fallback="raise")
    assert re.search(r"scan_\d\.nii\.gz has no match above min_score 0\.7 in .*lower min_score", told(error.value))


@pytest.mark.parametrize("score", [0.5, 0.9])
def test_poor_matches_are_used_and_counted(tmp_path: Path, score: float, caplog: pytest.LogCaptureFixture) -> None:
    items = [write(tmp_path / f"scan_{i}.nii.gz", i) for i in range(3)]
    matcher = {"_target_": "tests.bundles.alice_runs.SameWorld", "score": score}
    run = workflow(tmp_path / "run", datalist(tmp_path, items), matcher=matcher)
    with caplog.at_level(logging.WARNING):
        run.run()
    metrics = run.parser.get_parsed_content("validate#evaluator").state.metrics
    assert metrics["fallback_share"] == (score < 0.7)
    assert metrics["match_score"] == pytest.approx(score)


def test_a_truncated_scan_is_named(tmp_path: Path) -> None:
    items = [write(tmp_path / f"scan_{i}.nii.gz", i) for i in range(3)]
    file = Path(items[1]["image"])
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RuntimeError) as error:
        train(tmp_path / "run", datalist(tmp_path, items))
    assert re.search(r"scan_1\.nii\.gz: cannot be read", told(error.value))
