"""CTs that are not in Hounsfield units are refused with a remedy, or mended where the config says so."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.transforms.units import CheckHounsfieldd


def ct(air: float = 0.5) -> torch.Tensor:
    """A body of fat, soft tissue and bone in air, in HU, as a scanner may give it."""
    random = np.random.default_rng(0)
    values = np.full((1, 20, 20, 20), -1000.0)
    body = int(20 * air)
    tissue = random.choice([-100.0, 40.0, 60.0, 400.0, 1200.0], p=[0.3, 0.35, 0.25, 0.07, 0.03], size=(20, 20, 20))
    values[0, body:] = tissue[body:]
    return torch.from_numpy(values + random.normal(0, 8, values.shape).round()).float()


def check(values: torch.Tensor, mode: str = "raise") -> torch.Tensor:
    volume = MetaTensor(values, meta={"filename_or_obj": "scan.nii.gz"})
    return CheckHounsfieldd("image", mode=mode)({"image": volume})["image"]


@pytest.mark.parametrize("air", [0.0, 0.2, 0.5, 0.8])
def test_hounsfield_units_pass(air: float) -> None:
    """Also a crop within the body, and one clipped to what is above water."""
    for values in (ct(air), ct(air).clamp(min=-200, max=300), ct(air).clamp(min=0)):
        for mode in ("raise", "shift"):
            torch.testing.assert_close(torch.as_tensor(check(values, mode)), values)


@pytest.mark.parametrize("air", [0.0, 0.2, 0.5, 0.8])
def test_unsigned_units_are_refused_or_shifted(air: float, caplog: pytest.LogCaptureFixture) -> None:
    values = (ct(air) + 1024).clamp(min=0)
    with pytest.raises(BadImageError, match=r"^scan\.nii\.gz: .*unsigned.*units shift"):
        check(values)
    with caplog.at_level(logging.WARNING):
        shifted = check(values, "shift")
    torch.testing.assert_close(torch.as_tensor(shifted), values - 1024)
    assert shifted.meta["filename_or_obj"] == "scan.nii.gz"
    assert "scan.nii.gz: unsigned" in caplog.text


@pytest.mark.parametrize("mode", ["raise", "shift"])
@pytest.mark.parametrize("scale", [1 / 2200, 255 / 2200])
def test_rescaled_units_are_refused(mode: str, scale: float) -> None:
    with pytest.raises(BadImageError, match="no Hounsfield units"):
        check((ct() + 1000).clamp(min=0) * scale, mode)


@pytest.mark.parametrize("mode", ["off", False, "False"])
def test_off_looks_at_nothing(mode: str) -> None:
    """Also as YAML and the command line write it."""
    assert check(ct() / 2200, mode).min() < 0


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="shift or off"):
        CheckHounsfieldd("image", mode="guess")


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_integers_are_judged_as_floats_are_and_stay_integers(dtype: torch.dtype) -> None:
    signed, unsigned = ct().round(), (ct() + 1024).clamp(min=0).round()
    assert torch.equal(torch.as_tensor(check(signed.to(dtype))), signed.to(dtype))
    with pytest.raises(BadImageError, match="unsigned"):
        check(unsigned.to(dtype))
    shifted = check(unsigned.to(dtype), "shift")
    assert shifted.dtype == dtype
    assert torch.equal(torch.as_tensor(shifted).float(), unsigned - 1024)
    with pytest.raises(BadImageError, match="no Hounsfield units"):
        check((ct() / 10).clamp(-100, 100).to(torch.int8))
