"""`python -m anatomy_ssl export`, `inspect` and `import-released`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DenseNet121

from anatomy_ssl.__main__ import main
from anatomy_ssl.networks import SwinEncoder
from anatomy_ssl.weights import read_state
from anatomy_ssl.weights.timm import to_timm
from tests.reference.nnformer import random_state
from tests.weights.networks import densenet, same, saved, student


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    """Run the program in this process; returns its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["anatomy_ssl", *map(str, arguments)])
        return main()

    return run


def test_export_and_inspect(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"model": student().state_dict(), "provenance": {"method": "isimed", "seed": 3}}
    path, output = saved(content, tmp_path / "checkpoint.pt"), tmp_path / "encoder.pt"
    assert call("export", "--checkpoint", path, "--output", output) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    assert same(read_state(output), densenet().state_dict())
    assert call("inspect", output) == 0
    printed = capsys.readouterr().out
    assert "  method: isimed\n  seed: 3\n" in printed
    assert "float32" in printed


@pytest.mark.parametrize(
    ("flags", "dtype"), [(("--half",), torch.float16), (("--half", "false"), torch.float32), ((), torch.float32)]
)
def test_flags(call, flags: tuple[str, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    """And a part, of a file without a record."""
    path, output = saved({"model": student().state_dict()}, tmp_path / "model.pt"), tmp_path / "encoder.pt"
    assert call("export", "--checkpoint", path, "--output", output, *flags) == 2
    assert call("export", "--checkpoint", path, "--output", output, "--allow_unknown", "false", *flags) == 2
    options = ("--part", "encoder.features", "--allow_unknown")
    assert call("export", "--checkpoint", path, "--output", output, *options, *flags) == 0
    assert read_state(output)["conv0.weight"].dtype == dtype


def test_import_released(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=1024)
    path, output = saved(network, tmp_path / "theirs.pt"), tmp_path / "encoder.pt"
    assert call("import-released", "--source", path, "--output", output, "--method", "isimed") == 0
    assert same(read_state(output), network.state_dict())
    assert call("import-released", path, output, "moco") == 2
    assert "choose isimed" in capsys.readouterr().err


def test_import_released_peac_and_export_timm(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A student's Swin of three channels; to timm's names and back."""
    network = SwinEncoder(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
    path, output = saved({"student": to_timm(network.state_dict())}, tmp_path / "theirs.pt"), tmp_path / "encoder.pt"
    options = ("--output", output, "--method", "peac", "--which", "student", "--channels", 3)
    assert call("import-released", path, *options) == 0
    assert same(read_state(output), network.state_dict())
    assert call("export-timm", output, "--output", tmp_path / "timm.pt", "--layout", "original") == 0
    assert f"wrote {tmp_path / 'timm.pt'}" in capsys.readouterr().out
    assert same(read_state(tmp_path / "timm.pt"), to_timm(network.state_dict(), "original"))
    assert call("import-released", path, tmp_path / "e.pt", "peac", "--which", "teacher") == 2
    assert "has no teacher, but student" in capsys.readouterr().err


def test_import_released_alice(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A student beside the authors' arguments, with a position embedding of its own file."""
    state = random_state(6, (1, 2), (4, 4), released=True)
    path = saved({"student": state, "args": argparse.Namespace(lr=1)}, tmp_path / "theirs.pth")
    positions = saved(torch.ones(1, 6, 16, 16, 16), tmp_path / "positions.pt")
    options = ("--output", tmp_path / "encoder.pt", "--method", "alice", "--which", "student")
    assert call("import-released", path, *options, "--position_embedding", positions) == 0
    assert f"wrote {tmp_path / 'encoder.pt'}" in capsys.readouterr().out
    assert read_state(tmp_path / "encoder.pt")["encoder.position_embedding"].eq(1).all()
    assert call("import-released", path, tmp_path / "e.pt", "alice", "--channels", 1) == 2
    assert "leave channels out" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_errors_are_one_line(call, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.pt").write_text("nothing")
    arguments = (tmp_path / "w.pt",) if command == "inspect" else (tmp_path / "w.pt", tmp_path / "e.pt")
    assert call(command, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'w.pt'} is damaged")
