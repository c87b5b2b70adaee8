"""The training of the anatomical embedding, in seconds: volumes, radiographs, MR, resume, two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from anatomy_ssl.data.phantom import write_phantom_cohort
from anatomy_ssl.matching import EmbeddingRecipe
from anatomy_ssl.weights.files import read_weights
from tests.bundles.runs import assert_same_weights, weights

CONFIGS = Path(__file__).parents[2] / "bundles" / "alice" / "configs"
TINY: dict[str, Any] = {
    "spacing": [12.0, 12.0, 12.0],
    "patch_size": [12, 12, 12],
    "features": 8,
    "stage_channels": [8, 8],
    "stage_layers": [1, 1],
    "coarse_level": 1,
    "volumes_per_batch": 2,
    "points_per_pair": 10,
    "ignore_radius": {"fine": 3.0, "coarse": 4.0},
    "num_workers": 0,
    "epochs": 2,
    "warmup_epochs": 0,
    "tensorboard": False,
    "mlflow": False,
    "device": "$torch.device('cpu')",
}


def train(folder: Path, data: Path, names: tuple[str, ...] = (), **changes: Any) -> Path:
    """Run it in this process; returns the output folder."""
    folder.mkdir(exist_ok=True)
    (folder / "last.json").write_text(json.dumps({**TINY, **changes}))
    files = [str(CONFIGS / name) for name in ("pretrain_embedding.yaml", *names)] + [str(folder / "last.json")]
    places = {"dataset_dir": str(data), "output_dir": str(folder / "out")}
    monai.bundle.create_workflow(config_file=files, run_id="training", **places).run()
    return folder / "out"


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("embedding"), cohort)


def test_the_file_brings_back_network_and_recipe(trained: Path) -> None:
    """embedding.pt alone is what matching needs."""
    state, record = read_weights(trained / "embedding.pt")
    recipe = EmbeddingRecipe.from_record(record["embedding"])
    recipe.build().load_state_dict(state)
    assert recipe.spacing == (12.0, 12.0, 12.0) and record["method"] == "sam" and record["epochs"] == 2


def test_resumed_is_uninterrupted(trained: Path, cohort: Path, tmp_path: Path) -> None:
    """And other workers change nothing."""
    handler = {"+train#handlers": [{"_target_": "tests.bundles.runs.TerminateAt", "iteration": 4}]}
    with pytest.raises(SystemExit):
        train(tmp_path, cohort, num_workers=2, **handler)
    with pytest.raises(AssertionError):
        assert_same_weights(trained, tmp_path / "out")
    assert_same_weights(trained, train(tmp_path, cohort, resume="auto"))


def test_training_moves_all_weights(trained: Path, cohort: Path, tmp_path: Path) -> None:
    first = weights(train(tmp_path, cohort, learning_rate=0.0))
    assert not [name for name, tensor in weights(trained).items() if torch.equal(tensor, first[name])]


def test_it_trains_on_mr(tmp_path: Path) -> None:
    """Volumes without Hounsfield units, in any range."""
    cohort = tmp_path / "mr"
    write_phantom_cohort(cohort, subjects=4, seed=0, spacings=((12.0, 12.0, 12.0),), radiographs=False, progress=False)
    for path in (cohort / "images").glob("*.nii.gz"):
        image = nib.load(path)
        values = (np.asarray(image.dataobj) + 1024) * 0.01
        nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), path)
    with pytest.raises(RuntimeError) as refused:
        train(tmp_path / "ct", cohort, epochs=1)
    assert "Hounsfield" in str(refused.value.__cause__)
    assert (train(tmp_path / "run", cohort, ("embedding_mr.yaml",), epochs=1) / "embedding.pt").exists()


def test_it_trains_on_radiographs(tmp_path: Path) -> None:
    cohort = tmp_path / "phantoms"
    write_phantom_cohort(cohort, subjects=4, seed=0, spacings=((9.0, 9.0, 9.0),), progress=False)
    flat = {"spacing": None, "image_size": [48, 48], "patch_size": [24, 24]}
    out = train(tmp_path / "run", cohort / "radiographs", ("embedding_2d.yaml",), epochs=1, **flat)
    assert EmbeddingRecipe.from_record(read_weights(out / "embedding.pt")[1]["embedding"]).spatial_dims == 2


def test_the_published_optimiser(cohort: Path, tmp_path: Path) -> None:
    out = train(tmp_path, cohort, ("paper_embedding.yaml",), epochs=1, warmup_epochs=0, learning_rate=0.02)
    assert read_weights(out / "embedding.pt")[1]["settings"]["optimizer"] == "SGD"
