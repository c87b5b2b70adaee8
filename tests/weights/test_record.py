"""An encoder's file says where the weights come from, in the words that the training left in its checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.segresnet_ds import SegResEncoder

from anatomy_ssl.networks import EncoderWithHeads, PooledEncoder
from anatomy_ssl.weights import export_encoder, inspect, load_pretrained, read_state, save_encoder
from tests.weights.networks import densenet, same, saved, student

PROVENANCE = {"method": "isimed", "seed": 0, "epochs": 2, "versions": {"torch": "2"}, "crop_spacing": None}


def checkpoint(path: Path, network: torch.nn.Module | None = None, **extra: Any) -> Path:
    """What a training leaves."""
    return saved({"model": (network or student()).state_dict(), "optimizer": {"lr": 1e-3}, **extra}, path)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "checkpoint.pt", provenance=PROVENANCE)


def test_export_and_load_give_the_same_features(trained: Path, tmp_path: Path) -> None:
    exported = export_encoder(trained, tmp_path / "encoders" / "densenet.pt")
    content = torch.load(exported, weights_only=True)
    assert list(content) == ["model", "provenance"]
    assert content["provenance"] == PROVENANCE
    assert same(content["model"], densenet().state_dict())
    network = densenet(seed=1)
    report = load_pretrained(network, exported, minimum_share=1.0)
    assert (report.prefix, report.missing, report.unexpected, report.mismatched) == ("", [], [], [])
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(network.eval()(x), densenet().eval()(x))


def test_a_part_has_its_own_names(tmp_path: Path) -> None:
    encoder = SegResEncoder(spatial_dims=2, init_filters=8)
    network = EncoderWithHeads(PooledEncoder(encoder, out_channels=3))
    path = checkpoint(tmp_path / "c.pt", network, provenance=PROVENANCE)
    assert list(read_state(export_encoder(path, tmp_path / "e.pt"))) == list(network.encoder.state_dict())
    assert same(read_state(export_encoder(path, tmp_path / "b.pt", part="encoder.backbone")), encoder.state_dict())
    assert same(read_state(export_encoder(path, tmp_path / "a.pt", part="")), network.state_dict())
    # an exported encoder is a checkpoint as well, and keeps its record
    again = export_encoder(tmp_path / "e.pt", tmp_path / "again.pt", part="backbone")
    assert same(read_state(again), encoder.state_dict())
    assert inspect(again).provenance == PROVENANCE


def test_half_precision_is_for_floating_point_numbers_that_fit(trained: Path, tmp_path: Path) -> None:
    export_encoder(trained, tmp_path / "full.pt")
    small = read_state(export_encoder(trained, tmp_path / "half.pt", half=True))
    assert {tensor.dtype for tensor in small.values()} == {torch.float16, torch.int64}
    for name, tensor in densenet().state_dict().items():
        torch.testing.assert_close(small[name].to(tensor.dtype), tensor, atol=1e-3, rtol=1e-3)
    assert inspect(tmp_path / "half.pt").size < inspect(tmp_path / "full.pt").size
    network = student()
    network.encoder.features.norm0.running_var[0] = 1e6
    path = checkpoint(tmp_path / "large.pt", network, provenance=PROVENANCE)
    with pytest.raises(ValueError, match=r"features\.norm0\.running_var has values beyond 65504.*--half"):
        export_encoder(path, tmp_path / "never.pt", half=True)
    assert not (tmp_path / "never.pt").exists()


@pytest.mark.parametrize("extra", [{}, {"provenance": {}}, {"provenance": "none"}])
def test_what_is_not_known_is_not_made_up(extra: dict[str, Any], tmp_path: Path) -> None:
    """Checkpoints of before, and fine-tuned `model.pt`, say nothing of their training."""
    path = checkpoint(tmp_path / "model.pt", **extra)
    with pytest.raises(ValueError, match=r"model\.pt does not say how it was trained.*--allow_unknown"):
        export_encoder(path, tmp_path / "e.pt")
    assert not (tmp_path / "e.pt").exists()
    record = inspect(export_encoder(path, tmp_path / "e.pt", allow_unknown=True)).provenance
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert record == {"method": "unknown", "source": "model.pt", "source_sha256": sha256}


def test_export_refuses_other_checkpoints(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing under 'teacher'.*encoder\.features.*--part"):
        export_encoder(trained, tmp_path / "e.pt", part="teacher")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        export_encoder(tmp_path / "none.pt", tmp_path / "e.pt")
    assert not (tmp_path / "e.pt").exists()


def test_a_checkpoint_is_not_written_over(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's state would be gone."""
    before = trained.read_bytes()
    monkeypatch.chdir(trained.parent)
    with pytest.raises(ValueError, match="is the checkpoint itself"):
        export_encoder(trained, "checkpoint.pt")
    assert trained.read_bytes() == before


def test_records_are_json(tmp_path: Path) -> None:
    for bad in (tmp_path, float("nan"), torch.zeros(1)):
        with pytest.raises(ValueError, match="JSON"):
            save_encoder({"a": torch.zeros(1)}, {"bad": bad}, tmp_path / "e.pt")
    with pytest.raises(ValueError, match="no weights"):
        save_encoder({}, {}, tmp_path / "e.pt")
    assert not any(tmp_path.iterdir())


def test_files_hold_the_values_and_no_graph_or_view(tmp_path: Path) -> None:
    """A view would drag the whole tensor behind it into the file."""
    large = torch.randn(1000, 1000, requires_grad=True)
    path = save_encoder({"a": large[:, :1], "b": large[:1]}, {}, tmp_path / "e.pt")
    assert path.stat().st_size < 50_000
    assert torch.equal(read_state(path)["a"], large[:, :1])
    assert not read_state(path)["a"].requires_grad


def test_inspect_reads_like_a_label(trained: Path, tmp_path: Path) -> None:
    path = export_encoder(trained, tmp_path / "e.pt")
    summary, network = inspect(path), densenet()
    assert summary.names == list(network.state_dict())
    assert summary.values == sum(tensor.numel() for tensor in network.state_dict().values())
    assert summary.dtypes == {"float32": 66, "int64": len(summary.names) - 66}
    lines = str(summary).splitlines()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in lines[0]
    assert "first: features.conv0.weight, last: class_layers.out.bias" in lines
    for line in ("provenance:", "  method: isimed", "  crop_spacing: None", "  versions:", "    torch: 2"):
        assert line in lines


def test_inspect_says_where_there_is_no_record(tmp_path: Path) -> None:
    assert str(inspect(saved(densenet(), tmp_path / "plain.pt"))).endswith("provenance: no record")


def test_an_output_that_is_a_folder(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "encoders").mkdir()
    with pytest.raises(ValueError, match=r"encoders is a folder: give the name of the file to write"):
        export_encoder(trained, tmp_path / "encoders")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "encoders"]
    assert not any((tmp_path / "encoders").iterdir())
