"""The options of a training's step, through the recipes: each trains, and writes the same names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anatomy_ssl.data.phantom import write_phantom_cohort
from tests.bundles import alice_runs, runs, test_alice_embedding, test_peac

COMPILED = {"compile": "true", "+train#trainer#compile_kwargs": {"backend": "eager"}}
OPTIONS: dict[str, dict[str, Any]] = {
    "accumulate": {"accumulate": 2},
    "bfloat16": {"precision": "bfloat16"},
    "channels_last": {"channels_last": "true", "fused": "false"},
    "compile": COMPILED,
}
# rounding; a few steps of an optimiser that divides by small second moments
ALIKE = {"channels_last": 1e-3, "compile": 1e-3}


def train_isimed(folder: Path, data: Path, **changes: Any) -> Path:
    return runs.run("training", folder, data, **changes)


METHODS: dict[str, Callable[..., Path]] = {
    "isimed": train_isimed,
    "peac": test_peac.train,
    "alice": alice_runs.train,
    "embedding": test_alice_embedding.train,
}


@pytest.fixture(scope="module")
def data(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scans, and radiographs."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_cohort(folder, subjects=8, seed=0, spacings=((9.0, 9.0, 9.0),), progress=False)
    return dict.fromkeys(METHODS, cohort) | {"peac": folder / "radiographs"}


@pytest.fixture(scope="module")
def plain(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One epoch of each method without options."""
    return {
        name: train(tmp_path_factory.mktemp(name), data[name], epochs=1, **own(name)) for name, train in METHODS.items()
    }


def own(method: str) -> dict[str, Any]:
    """A schedule with no warm-up fits one epoch."""
    return {} if method == "isimed" else {"warmup_epochs": 0}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_each_option_trains_each_method(
    method: str, option: str, data: dict[str, Path], plain: dict[str, Path], tmp_path: Path
) -> None:
    """Names and shapes are those without it, in the checkpoint and in what is exported."""
    output = METHODS[method](tmp_path / "run", data[method], epochs=1, **own(method), **OPTIONS[option])
    for file in ("checkpoint.pt", "embedding.pt" if method == "embedding" else "encoder.pt"):
        mine, reference = (torch.load(folder / file, weights_only=True)["model"] for folder in (output, plain[method]))
        assert {name: value.shape for name, value in mine.items()} == {n: v.shape for n, v in reference.items()}
        assert all(torch.isfinite(value).all() for value in mine.values())
        if option in ALIKE:
            # a bias ahead of a norm has no gradient but rounding, which Adam makes as large as any
            for name, value in ((n, v) for n, v in mine.items() if not n.endswith("conv.bias")):
                torch.testing.assert_close(value, reference[name], rtol=1e-2, atol=ALIKE[option], msg=name)


def test_what_changes_the_result_is_in_the_record(data: dict[str, Path], tmp_path: Path) -> None:
    output = METHODS["isimed"](tmp_path, data["isimed"], epochs=1, accumulate=2, precision="bfloat16")
    settings = torch.load(output / "encoder.pt", weights_only=True)["provenance"]["settings"]
    assert (settings["accumulate"], settings["precision"]) == (2, "bfloat16")


@pytest.mark.parametrize("method", ["isimed", "alice"])
def test_resume_with_accumulation(method: str, data: dict[str, Path], tmp_path: Path) -> None:
    """Stopped within an epoch; dropout of each part, masks and the teacher go on."""
    whole = METHODS[method](tmp_path / "whole", data[method], accumulate=2, epochs=2)
    stop = {"+train#handlers": [{"_target_": "tests.bundles.runs.TerminateAt", "iteration": 2}]}
    with pytest.raises((SystemExit, RuntimeError)):
        METHODS[method](tmp_path / "stopped", data[method], accumulate=2, epochs=2, **stop)
    assert not (tmp_path / "stopped" / "out" / "encoder.pt").exists()
    resumed = METHODS[method](tmp_path / "stopped", data[method], accumulate=2, epochs=2, resume=True)
    runs.assert_same_weights(whole, resumed)


def test_activation_checkpointing(data: dict[str, Path], plain: dict[str, Path], tmp_path: Path) -> None:
    """The same weights; any encoder that has the argument takes it as a nested key."""
    option = {"encoder": {**test_peac.TINY["encoder"], "use_checkpoint": True}}
    checkpointed = METHODS["peac"](tmp_path, data["peac"], epochs=1, **own("peac"), **option)
    runs.assert_same_weights(plain["peac"], checkpointed)


def test_words_that_cannot_be(data: dict[str, Path], tmp_path: Path) -> None:
    """The cause is in the chain of MONAI's errors, and in the log."""
    with pytest.raises(RuntimeError) as refused:
        METHODS["isimed"](tmp_path, data["isimed"], precision="float16")
    assert "float16 needs CUDA" in str(refused.value.__cause__)
