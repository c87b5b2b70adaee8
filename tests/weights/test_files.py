"""Only files of weights are read, and nothing in them is ever executed."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRangePercentilesd

from anatomy_ssl.transforms import RandCoarseDropout
from anatomy_ssl.weights import fingerprint, inspect, load_pretrained, read_weights, settings_of
from anatomy_ssl.weights.files import file_hash
from tests.weights.networks import densenet


class Malicious:
    """Unpickling this would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def write_truncated(path: Path) -> None:
    torch.save(densenet().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_flipped(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("read", [lambda path: load_pretrained(densenet(), path), inspect], ids=["load", "inspect"])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_truncated, "is damaged"),
        (write_flipped, "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_text("not weights\n" * 20), "is damaged"),
        (lambda path: torch.save({"args": argparse.Namespace(a=1)}, path), "pickled argparse.Namespace"),
        (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), "holds no state dict.*epoch, lr"),
        (lambda path: torch.save({"model": {}}, path), "holds no state dict"),
        (lambda path: torch.save(torch.zeros(2), path), "holds no state dict.*Tensor"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_cause(
    tmp_path: Path, write: Callable[[Path], None], message: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "w.pt"
    write(path)
    with pytest.raises(ValueError, match=f"w.pt.*{message}|w.pt {message}"):
        read(path)


def write_safetensors(path: Path) -> None:
    """By the format's definition: length of the header, header, values."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.mark.parametrize("read", [lambda path: load_pretrained(densenet(), path), inspect], ids=["load", "inspect"])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (Path.mkdir, r"is a folder: give a file in it"),
        (
            lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path),
            r"is a TorchScript program.*torch\.jit\.load",
        ),
        (write_safetensors, r"is a safetensors file.*safetensors\.torch\.load_file"),
    ],
    ids=["folder", "TorchScript", "safetensors"],
)
def test_what_is_no_file_of_torch_save_is_called_by_its_name(
    tmp_path: Path, write: Callable[[Path], None], message: str, read: Callable[[Path], object]
) -> None:
    """None of them is damaged, nor to be left empty."""
    write(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt {message}"):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize("url", ["https://example.org/encoder.pt", "s3://bucket/encoder.pt", Path("https://a.b/c.pt")])
def test_a_url_is_to_be_downloaded(url: str | Path) -> None:
    with pytest.raises(ValueError, match=r"\.pt is a URL: download it"):
        inspect(url)


def test_a_script_cut_short_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "w.ts"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"w\.ts is damaged"):
        inspect(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_not_executed(form: str, tmp_path: Path) -> None:
    path, target = tmp_path / "w.pt", tmp_path / "made"
    content = {"model": densenet().state_dict(), "extra": Malicious(target)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    cause = "damaged or not written" if form == "bare" else r"holds a pickled posix\.mkdir, which could run code"
    with pytest.raises(ValueError, match=rf"w\.pt.*{cause}"):
        load_pretrained(densenet(), path)
    assert not target.exists()
    torch.load(path, weights_only=False) if form != "bare" else pickle.loads(path.read_bytes())
    assert target.exists()  # the file would have


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.pt: check the path"):
        load_pretrained(densenet(), tmp_path / "none.pt")


def test_the_record_comes_with_the_weights(tmp_path: Path) -> None:
    torch.save({"model": {"module.a": torch.ones(1)}, "provenance": {"seed": 3}}, tmp_path / "w.pt")
    state, record = read_weights(tmp_path / "w.pt")
    assert (list(state), record) == (["a"], {"seed": 3})
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt")[1] == {}


def test_fingerprint_depends_on_content_alone() -> None:
    config = {"a": [1, 2.5, None], "b": {"c": True, "d": "ü"}}
    assert fingerprint(config) == fingerprint(dict(reversed(config.items())))
    assert fingerprint(config) == fingerprint(json.loads(json.dumps(config)))
    assert fingerprint({**config, "a": [1, 2.5, 0]}) != fingerprint(config)
    assert fingerprint([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # sha256 of "[]"
    for bad in ({1, 2}, float("nan"), torch.zeros(1)):
        with pytest.raises(ValueError, match="JSON"):
            fingerprint({"bad": bad})


def test_settings_of_objects_are_told_apart() -> None:
    """Which their texts do not do; and two objects made alike are alike, wherever they lie in memory."""

    def configured(**changes: Any) -> str:
        options = {"lower": 5, "upper": 95, "b_min": -1, "b_max": 1, **changes}
        scale = ScaleIntensityRangePercentilesd("image", **options)
        dropout = RandCoarseDropout(prob=changes.get("relative", 0.5))
        return fingerprint(settings_of({"list": [scale, None, (dropout, np.ones(2))]}))

    assert configured() == configured()
    assert len({configured(), configured(lower=1), configured(b_min=0), configured(relative=True)}) == 4


def test_settings_that_are_no_attributes_are_told_apart() -> None:
    """Types, words of an enumeration, and what a lambda or a partial does."""

    def power(exponent: int) -> Any:
        return lambda x: x**exponent

    kinds = [torch.uint8, torch.int16, np.dtype("int8"), np.float32(1), np.float32(2), {1}, {2}, range(2), range(3)]
    kinds += [lambda x: x + 1, lambda x: x + 2, lambda x: x.min(), lambda x: x.max(), power(2), power(3)]
    kinds += [partial(round, ndigits=1), partial(round, ndigits=2)]
    assert len({fingerprint(settings_of([kind])) for kind in kinds}) == len(kinds)
    assert fingerprint(settings_of(power(2))) == fingerprint(settings_of(power(2)))


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_hash(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(tmp_path / "f", "md5") == "900150983cd24fb0d6963f7d28e17f72"
