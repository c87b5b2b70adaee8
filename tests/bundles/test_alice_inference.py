"""inference.json of the Alice bundle: organs on the scans' own grids, whatever these are; and what configs repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy import ndimage

from tests.bundles.test_alice_finetune import CONFIGS
from tests.bundles.test_inference import STORED, as_monai_label_runs_it, planted


class VoxelLevels(torch.nn.Module):
    """Stands in for a trained network: the class of a voxel is that whose level is nearest to its intensity.

    Args:
        levels: of the background and the classes, on the scale of the prepared image.
    """

    def __init__(self, levels: list[float]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(N, 1 + K, *spatial)` of crops `(N, 1, *spatial)`."""
        return -100 * (x - self.levels.view(1, -1, *[1] * (x.ndim - 2))) ** 2


# air is 0 after preparation, the body 125 / 350, the lesion 1
SETTINGS: dict[str, Any] = {
    "classes": {"body": 1, "lesion": 2},
    "crop_size": [16, 16, 16],
    "crop_spacing": [2.0, 2.0, 2.0],
    "checkpoint": "",
    "device": "cpu",
    "network_def": {"_target_": "tests.bundles.test_alice_inference.VoxelLevels", "levels": [0.0, 0.36, 1.0]},
}


def infer(data: Path, output: Path, **changes: Any) -> Path:
    """Run inference.json on a folder of scans."""
    options = {**SETTINGS, "dataset_dir": str(data), "output_dir": str(output), **changes}
    monai.bundle.run("run", config_file=str(CONFIGS / "inference.json"), **options)
    return output


def raw(name: str) -> dict[str, Any]:
    """A config file as it is written."""
    return ConfigParser.load_config_file(CONFIGS / name)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of one scan stored in several ways, and of what is found in it."""
    folder, output = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("masks")
    image, lesion = planted()
    truth = nib.Nifti1Image(lesion.astype(np.uint8), image.affine)
    (folder / "truth").mkdir()
    (folder / "images").mkdir()
    for name, store in STORED.items():
        nib.save(store(image), folder / "images" / f"{name}.nii.gz")
        nib.save(store(truth), folder / "truth" / f"{name}.nii.gz")
    return folder, infer(folder / "images", output, save_probability=True)


@pytest.mark.parametrize("name", STORED)
def test_masks_lie_on_the_scans_own_grid(name: str, masks: tuple[Path, Path]) -> None:
    """Shape and affine of the file, labels in the mask, the probability of every label in the map."""
    image = nib.load(masks[0] / "images" / f"{name}.nii.gz")
    mask, probability = (nib.load(masks[1] / f"{name}_{kind}.nii.gz") for kind in ("pred", "probability"))
    assert mask.shape == image.shape
    assert probability.shape == (*image.shape, 3)
    for result in (mask, probability):
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) == {0, 1, 2}
    np.testing.assert_array_equal(probability.get_fdata().argmax(-1), np.asarray(mask.dataobj))


@pytest.mark.parametrize("name", STORED)
def test_organs_are_where_they_are(name: str, masks: tuple[Path, Path]) -> None:
    """But for the border between two of them, a sample wide."""
    mask = np.asarray(nib.load(masks[1] / f"{name}_pred.nii.gz").dataobj) == 2
    truth = nib.load(masks[0] / "truth" / f"{name}.nii.gz")
    lesion, spacing = np.asarray(truth.dataobj) == 1, truth.header.get_zooms()
    inside = ndimage.distance_transform_edt(lesion, spacing) > 4
    near = ndimage.distance_transform_edt(~lesion, spacing) < 4
    assert inside.sum() > 100
    assert mask[inside].all()
    assert not mask[~near].any()


def test_native_voxels_and_no_map(tmp_path: Path) -> None:
    """crop_spacing null resamples nothing, so that every voxel is right; the map is written on demand only."""
    image, lesion = planted()
    (tmp_path / "scans").mkdir()
    nib.save(image, tmp_path / "scans" / "a.nii.gz")
    infer(tmp_path / "scans", tmp_path / "out", crop_spacing="$None")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a_pred.nii.gz"]
    found = np.asarray(nib.load(tmp_path / "out" / "a_pred.nii.gz").dataobj)
    np.testing.assert_array_equal(found == 2, lesion)


def test_monai_label_gets_a_mask_on_the_original_grid(masks: tuple[Path, Path]) -> None:
    """`Spacingd` of MONAI 1.6 stops at the path that MONAI Label adds; the path is there when the mask is written."""
    path = str(masks[0] / "images" / "turned.nii.gz")
    parser = ConfigParser(raw("inference.json"))
    parser.update({**SETTINGS, "bundle_root": str(CONFIGS.parent)})
    request = {"image": path, "image_path": path, "model": "alice", "device": "cpu", "model_filename": ["model.pt"]}
    data = as_monai_label_runs_it(parser, request)
    assert request.keys() <= data.keys()
    assert data["image_path"] == path
    saved = nib.load(masks[1] / "turned_pred.nii.gz")
    assert isinstance(data["pred"], MetaTensor)
    assert data["pred"].dtype == torch.uint8
    np.testing.assert_array_equal(data["pred"][0].numpy(), np.asarray(saved.dataobj))
    np.testing.assert_allclose(data["image"].meta["original_affine"], saved.affine, atol=1e-4)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Another number of classes, or none at all: nothing is run with random weights."""
    (tmp_path / "scans").mkdir()
    nib.save(planted()[0], tmp_path / "scans" / "a.nii.gz")
    network = raw("inference.json")["network_def"]
    parser = ConfigParser({**raw("inference.json"), "classes": {"a": 1}})
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    for name, message in (("absent.pt", "no weights at"), ("model.pt", "fit")):
        with pytest.raises(RuntimeError) as refused:
            infer(tmp_path / "scans", tmp_path / "out", checkpoint=str(tmp_path / name), network_def=network)
        assert message in repr(refused.value.__cause__)
    assert not (tmp_path / "out").exists()


def test_what_training_and_inference_repeat_is_the_same() -> None:
    """The network, its input and the deterministic preparation."""
    train, inference = raw("train.json"), raw("inference.json")
    keys = ["spatial_dims", "channels", "classes", "crop_size", "crop_spacing", "intensity_window", "intensity"]
    keys += ["feature_size", "depths", "num_heads", "window_size", "on_bad_image", "device"]
    for key in keys:
        assert train[key] == inference[key], key
    assert train["model"] == inference["network_def"]
    on_the_image = [step for step in train["preparation"] if isinstance(step, str) or step.get("keys") == "image"]
    around_spacing = ("CopyItemsd", "DeleteItemsd")
    steps = inference["preprocessing"]["transforms"]
    assert [s for s in steps if isinstance(s, str) or s["_target_"] not in around_spacing] == on_the_image
    shared = ("_target_", "roi_size", "mode", "padding_mode")
    assert [train["validate"]["inferer"][k] for k in shared] == [inference["inferer"][k] for k in shared]
    image = raw("metadata.json")["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"]) == (train["channels"], train["crop_size"])
    assert ConfigParser(train).get_parsed_content("intensity").scaler.b_min == image["value_range"][0]


@pytest.mark.parametrize("name", ["classes_flare22.yaml", "classes_btcv.yaml"])
def test_organs_of_data_sets(name: str) -> None:
    """13, each with its value, on training and inference alike, and the same in the documentation's table."""
    classes = raw(name)["classes"]
    assert list(classes.values()) == list(range(1, 14))
    for base in ("train.json", "inference.json"):
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / base), str(CONFIGS / name)])
        parser["pretrained"] = None
        assert parser.get_parsed_content("classes") == classes
    page = (CONFIGS.parents[2] / "docs" / "segmentation.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line[2:3].isdigit()]
    column = 1 if "flare22" in name else 2
    table = {row[column].removesuffix(" |"): int(row[0].removeprefix("| ")) for row in rows}
    assert table == classes


def test_processes_are_started_alike() -> None:
    """The overlay for several processes is ISImed's, which is on the same ids."""
    other = ConfigParser.load_config_file(CONFIGS.parents[1] / "isimed" / "configs" / "multi_gpu_train.yaml")
    assert raw("multi_gpu_train.yaml") == other


def test_small_pretraining_is_of_the_same_network() -> None:
    """pretrain.yaml with encoder_small.yaml makes the weights that train.json asks for, from images prepared alike."""
    train, pretraining = raw("train.json"), {**raw("pretrain.yaml"), **raw("encoder_small.yaml")}
    keys = ("spatial_dims", "channels", "crop_size", "crop_spacing", "intensity_window", "intensity")
    for key in (*keys, "feature_size", "depths", "num_heads", "window_size"):
        assert pretraining[key] == train[key], key


def test_classification_sees_what_segmentation_sees() -> None:
    """The overlay repeats the preparation of the image, and goes on top of train.json with keys that it has or uses."""
    train, overlay = raw("train.json"), raw("finetune_classification.yaml")
    before = [step for step in train["preparation"] if isinstance(step, str) or step.get("keys") == "image"]
    assert overlay["preparation"][: len(before)] == before
    text = (CONFIGS / "finetune_classification.yaml").read_text() + (CONFIGS / "train.json").read_text()
    new = [key for key in overlay if "#" not in key and key not in train]
    assert [key for key in new if f"@{key}" not in text] == []
