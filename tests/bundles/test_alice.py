"""The Alice bundle's pre-training, in seconds: what is exported, stage 1, overlays, variants, properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.networks.nets import SwinUNETR

from anatomy_ssl.data.phantom import write_phantom_cohort
from tests.bundles.alice_runs import CONFIGS, SWIN, TINY, checkpoint, files, train, workflow

METRICS = {
    *("reconstruction_error", "view_gap", "match_score", "fallback_share", "same_volume_share"),
    *("global_use", "global_entropy", "patch_use", "patch_entropy"),
}


def test_what_is_kept_is_the_teachers_swin_unetr_by_monais_names(cohort: Path, tmp_path: Path) -> None:
    """As MONAI's own class takes it, with what fine-tuning compares with in the record."""
    run = workflow(tmp_path, cohort, without=("backbone", "exported"), **SWIN, epochs=1, warmup_epochs=0, momentum=0.5)
    run.run()
    exported = torch.load(tmp_path / "out" / "encoder.pt", weights_only=True)
    network = SwinUNETR(1, 1, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=4)
    network.load_state_dict(exported["model"])
    state = checkpoint(tmp_path / "out")["model"]
    name = "swinViT.layers1.0.blocks.0.attn.qkv.weight"
    assert torch.equal(exported["model"][name], state[f"teacher.backbone.network.{name}"])
    assert not torch.equal(exported["model"][name], state[f"student.backbone.network.{name}"])
    record = exported["provenance"]
    assert (record["method"], record["channels"], record["intensity_window"]) == ("alice", 1, [-125.0, 225.0])
    assert record["settings"]["matcher"] == "SameWorld"
    assert set(run.parser.get_parsed_content("validate#evaluator").state.metrics) == METRICS


def test_the_student_is_trained_and_the_teacher_follows(cohort: Path, tmp_path: Path) -> None:
    """Every weight moves, and the centres do; the head's last layer only after the first epoch."""
    run = workflow(tmp_path, cohort)
    before = {k: v.clone() for k, v in run.parser.get_parsed_content("network_def").state_dict().items()}
    run.run()
    saved = checkpoint(tmp_path / "out")
    moved = {name for name, value in saved["model"].items() if not torch.equal(value, before[name])}
    student = run.parser.get_parsed_content("network_def").student
    assert {f"student.{name}" for name, weight in student.named_parameters() if weight.requires_grad} <= moved
    # the teacher's decoder is moved too: it is exported
    assert {name.replace("teacher", "student") for name in moved if name.startswith("teacher.")} == {
        name for name in moved if name.startswith("student.")
    }
    assert all(saved["loss"][f"terms.{term}.centre"].abs().sum() > 0 for term in ("global", "patch"))
    first = workflow(tmp_path / "first", cohort, epochs=1, warmup_epochs=0)
    initial = first.parser.get_parsed_content("network_def").student.head.last_layer
    name = next(name for name, _ in initial.named_parameters())
    value = initial.get_parameter(name).clone()
    first.run()
    assert torch.equal(checkpoint(tmp_path / "first" / "out")["model"][f"student.head.last_layer.{name}"], value)


EMBEDDING = {
    "epochs": 1,
    "repeats": 2,
    "num_workers": 0,
    "spacing": [12.0, 12.0, 12.0],
    "patch_size": [16, 16, 16],
    "features": 4,
    "stage_channels": [8, 8],
    "stage_layers": [1, 1],
    "coarse_level": 1,
    "points_per_pair": 10,
    "ignore_radius": {"fine": 2.0, "coarse": 4.0},
    "tensorboard": False,
    "mlflow": False,
}


def test_stage_1_is_trained_once_and_every_volume_embedded(cohort: Path, tmp_path: Path) -> None:
    """By the default matcher; a second run takes what is there, and ends in the same weights from the same seed."""
    found, written = [], []
    for _ in range(2):
        output = train(tmp_path, cohort, without=("matcher",), embedding_options=EMBEDDING, min_score=0.1)
        found.append(checkpoint(output)["model"])
        written.append((output / "embedding" / "embedding.pt").stat().st_mtime_ns)
        assert len(list((output / "embedding" / "store").glob("*/embedding.json"))) == 6
        (output / "checkpoint.pt").unlink()
    assert written[0] == written[1]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


OVERLAYS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("paper.yaml",), {}),
    (("paper.yaml", "released.yaml"), {"crop_size": [32, 32, 16]}),
    (("pretrain_mr.yaml",), {}),
    (("matcher_world.yaml",), {}),
    (("network_nnformer.yaml",), {"crop_size": [32, 32, 32], "feature_size": 6, "num_heads": [1, 1, 2, 2]}),
]


@pytest.mark.parametrize(("names", "changes"), OVERLAYS, ids=lambda value: "-".join(value))
def test_overlays_train(cohort: Path, tmp_path: Path, names: tuple[str, ...], changes: dict[str, Any]) -> None:
    """What an overlay says stays as it says."""
    own = {key for name in names for key in ConfigParser.load_config_file(CONFIGS / name)}
    output = train(tmp_path, cohort, names, tuple(own - {"crop_spacing"}), epochs=1, warmup_epochs=0, **changes)
    record = torch.load(output / "encoder.pt", weights_only=True)["provenance"]
    assert record["mode"] == {"paper": "paper", "released": "released"}.get(names[-1][:-5], "default")
    if names[-1] == "released.yaml":
        state = checkpoint(output)["model"]
        shared = [name for name in state if name.startswith("teacher.casa.")]
        assert shared
        assert all(torch.equal(state[name], state[name.replace("teacher", "student")]) for name in shared)
        assert record["settings"]["block_size"] == [16, 16, 16]


@pytest.mark.parametrize("off", [("patch",), ("global", "patch"), ("reconstruction",)])
def test_losses_can_be_switched_off(cohort: Path, tmp_path: Path, off: tuple[str, ...]) -> None:
    """With what they alone need, in network, metrics and pictures."""
    weights = {"global": 1.0, "patch": 1.0, "reconstruction": 10.0, **dict.fromkeys(off, 0)}
    run = workflow(tmp_path, cohort, weights=weights, epochs=1, warmup_epochs=0, pictures=True)
    run.run()
    assert run.parser.get_parsed_content("loss").values.keys() == {*(weights.keys() - off), "loss"}
    gone = {name for name in METRICS if name.startswith(off)}
    assert set(run.parser.get_parsed_content("validate#evaluator").state.metrics) == METRICS - gone


def test_pictures(cohort: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = train(tmp_path, cohort, epochs=1, warmup_epochs=0, pictures=True)
    assert {f.name for f in (output / "pictures").iterdir()} == {"pairs_epoch_0001.png", "restored_epoch_0001.png"}


def test_radiographs(tmp_path: Path) -> None:
    """The same pipeline in two dimensions, with SwinUNETR and matching by the same pixels."""
    folder = tmp_path / "phantoms"
    write_phantom_cohort(folder, subjects=4, seed=0, spacings=((9.0, 9.0, 9.0),), radiograph_size=96, progress=False)
    size = {"image_size": [80, 80], "crop_size": [64, 64], "block_size": 16, "crop_spacing": None, "pairs_per_batch": 2}
    tiny = {**SWIN, **size}
    own = ("backbone", "exported", "crop_size", "crop_spacing", "block_size", "pairs_per_batch")
    output = train(tmp_path, folder / "radiographs", ("pretrain_2d.yaml",), own, **tiny, epochs=1, warmup_epochs=0)
    model = torch.load(output / "encoder.pt", weights_only=True)["model"]
    assert model["swinViT.patch_embed.proj.weight"].shape == (12, 1, 2, 2)


def test_the_small_network_is_that_of_fine_tuning(tmp_path: Path) -> None:
    """encoder_small.yaml and train.json say the same, and the weights of one load into the other."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "pretrain.yaml"), str(CONFIGS / "encoder_small.yaml")])
    training = ConfigParser.load_config_file(CONFIGS / "train.json")
    for key in ("feature_size", "depths", "num_heads", "window_size", "crop_size", "crop_spacing", "intensity_window"):
        assert parser.get_parsed_content(key) == training[key], key
    assert ConfigParser.load_config_file(CONFIGS / "pretrain.yaml")["intensity"] == training["intensity"]


def test_properties(cohort: Path, tmp_path: Path) -> None:
    """MONAI finds every required property, and the optional ones under their names."""
    places = {"dataset_dir": str(cohort), "output_dir": str(tmp_path)}
    run = ConfigWorkflow(str(CONFIGS / "pretrain.yaml"), workflow_type="train", logging_file=False, **TINY, **places)
    run.initialize()
    assert run.check_properties() == []


def test_every_config_of_pretraining_is_named_where_users_look() -> None:
    """In the head of pretrain.yaml: overlays that nobody finds are no use."""
    head = (CONFIGS / "pretrain.yaml").read_text().split("imports:")[0]
    for name in ("encoder_small", "demo", "network_nnformer", "pretrain_mr", "pretrain_2d", "paper", "released"):
        assert f"{name}.yaml" in head
        assert (CONFIGS / f"{name}.yaml").is_file()


def test_demo_is_small_enough(tmp_path: Path) -> None:
    names = [str(CONFIGS / name) for name in ("pretrain.yaml", "encoder_small.yaml", "demo.yaml")]
    parser = ConfigParser()
    parser.read_config(names)
    assert parser.get_parsed_content("epochs") * parser.get_parsed_content("repeats") <= 30
    assert json.loads(json.dumps(files(tmp_path)))
