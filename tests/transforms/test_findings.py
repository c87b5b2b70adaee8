from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms.findings import FindingsVectord

NAMES = ["Effusion", "Pneumonia", "Nodule"]
FINDINGS = {"Pneumonia": 1, "Effusion": -1, "Nodule": None, "Edema": 0}


def vector(findings: Any, **options: Any) -> torch.Tensor:
    """Of one image."""
    item = {"image": "scans/a.png", "labels": findings}
    return FindingsVectord("labels", **{"names": NAMES, **options})(item)["label"]


@pytest.mark.parametrize(("policy", "value"), [("zeros", 0.0), ("ones", 1.0), ("ignore", math.nan)])
def test_order_is_that_of_the_names(policy: str, value: float) -> None:
    """Uncertain as the policy says, null as not known, other findings left out."""
    expected = torch.tensor([value, 1.0, math.nan])
    torch.testing.assert_close(vector(FINDINGS, uncertain=policy), expected, equal_nan=True)


def test_the_item_is_ready_for_batches() -> None:
    """The mapping is gone, the rest is left, the caller's item is not changed."""
    item = {"image": "a.png", "subject": "p", "labels": {"Nodule": 1.0}}
    done = FindingsVectord("labels", ["Nodule"], vector_key="target")(item)
    assert done.keys() == {"image", "subject", "target"}
    assert done["target"].dtype == torch.float32
    assert "labels" in item


def test_findings_in_a_file(tmp_path: Path) -> None:
    """MONAI Label's items name a JSON file under `label`; findings in the item go before it."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps(FINDINGS))
    transform = FindingsVectord("labels", ["Pneumonia"])
    assert transform({"image": "a.png", "label": str(file)})["label"].tolist() == [1]
    assert transform({"image": "a.png", "label": str(file), "labels": {"Pneumonia": 0}})["label"].tolist() == [0]
    file.write_text("{")
    for path, message in ((file, "cannot be read as JSON"), (tmp_path / "b.json", "No such file")):
        with pytest.raises(BadImageError, match=message) as error:
            transform({"image": "a.png", "label": str(path)})
        assert str(error.value).startswith(str(path))
    with pytest.raises(BadImageError, match=r"a\.png: the datalist gives no 'labels'"):
        transform({"image": "a.png", "label": "mask.png"})


def test_exclusive_classes() -> None:
    """One of them, or not known."""
    assert vector({"Effusion": 0, "Pneumonia": 1, "Nodule": 0}, exclusive=True).tolist() == [0, 1, 0]
    assert vector({"Effusion": 0, "Pneumonia": None, "Nodule": 0}, exclusive=True).isnan().any()


@pytest.mark.parametrize(
    ("findings", "options", "message"),
    [
        (None, {}, "gives no 'labels'"),
        ("Pneumonia", {}, "gives no 'labels'"),
        ({"Pneumonia": 1}, {}, "no finding 'Effusion' among its labels"),
        ({**FINDINGS, "Nodule": 3}, {}, "'Nodule' = 3: give 1, 0, -1"),
        ({**FINDINGS, "Nodule": "yes"}, {}, "'Nodule' = 'yes'"),
        (FINDINGS, {"missing": "raise"}, "no value for 'Nodule'"),
        ({"Effusion": 1, "Pneumonia": 1, "Nodule": 0}, {"exclusive": True}, "has 2 of the exclusive classes"),
        ({"Effusion": 0, "Pneumonia": 0, "Nodule": 0}, {"exclusive": True}, "has 0 of the exclusive classes"),
    ],
)
def test_bad_findings_are_named(findings: Any, options: dict[str, Any], message: str) -> None:
    """With the image, and what to do."""
    with pytest.raises(BadImageError, match=message) as error:
        vector(findings, **options)
    assert str(error.value).startswith("scans/a.png: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertain": "maybe"}, "zeros, ones or ignore"),
        ({"missing": "zeros"}, "ignore or raise"),
        ({"names": []}, "give a list"),
        ({"names": "Pneumonia"}, "give a list"),
        ({"names": ["Nodule", "Nodule"]}, "each once"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vector(FINDINGS, **options)
