"""inference.json: masks and probability maps on the scans' own grids, whatever these are."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

from tests.bundles.runs import CONFIGS, TINY
from tests.bundles.test_embed import write_dicom

OBLIQUE = nib.affines.from_matvec(
    np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([2.0, 2.0, 4.0]), [-30.0, 20.0, -400.0]
)
# a body of 0 in air of -1000, and a lesion of 1000: 1 and 3 after preparation
SHAPE, CENTRE, RADIUS = (44, 40, 26), (52.0, 44.0, 56.0), 14.0  # voxels; mm from the first voxel; mm
SETTINGS: dict[str, Any] = {
    "crop_size": [8, 8, 8],
    "crop_spacing": [3.0, 3.0, 3.0],
    "step": 1,
    "checkpoint": "",
    "device": torch.device("cpu"),
    "network_def": {"_target_": "tests.bundles.runs.BrightCentre", "levels": [2.0]},
}


def planted(affine: np.ndarray = OBLIQUE, shape: tuple[int, ...] = SHAPE) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A scan with a spherical lesion, and where the lesion is."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) * spacing
    extent = np.array(shape) * spacing
    body = (((at - extent / 2) / (0.45 * extent)) ** 2).sum(-1) < 1
    lesion = ((at - CENTRE) ** 2).sum(-1) < RADIUS**2
    values = np.where(lesion, 1000, np.where(body, 0, -1000)).astype(np.int16)
    return nib.Nifti1Image(values, affine), lesion


def infer(data: Path, output: Path, **changes: Any) -> Path:
    """Run inference.json on a folder of scans."""
    config = str(CONFIGS / "inference.json")
    monai.bundle.run(
        "run", config_file=config, dataset_dir=str(data), output_dir=str(output), **{**SETTINGS, **changes}
    )
    return output


STORED = {
    "oblique": lambda image: image,
    "flipped": lambda image: image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]])),
    "turned": lambda image: image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]])),
    "cropped": lambda image: image.slicer[5:40, 3:37, 4:24],
}


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
    return folder, infer(folder / "images", output)


@pytest.mark.parametrize("name", STORED)
def test_masks_lie_on_the_scans_own_grid(name: str, masks: tuple[Path, Path]) -> None:
    """Shape and affine of the file, whole numbers in the mask, probabilities in the map."""
    image = nib.load(masks[0] / "images" / f"{name}.nii.gz")
    mask, probability = (nib.load(masks[1] / f"{name}_{kind}.nii.gz") for kind in ("pred", "probability"))
    for result in (mask, probability):
        assert result.shape == image.shape
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) == {0, 1}
    values = probability.get_fdata()
    assert 0 <= values.min() < 0.01
    assert 0.95 < values.max() <= 1
    np.testing.assert_array_equal(values >= 0.5, np.asarray(mask.dataobj) == 1)


@pytest.mark.parametrize("name", STORED)
def test_masks_cover_the_lesion(name: str, masks: tuple[Path, Path]) -> None:
    """But for its rim, and nothing farther than a sample from it."""
    mask = np.asarray(nib.load(masks[1] / f"{name}_pred.nii.gz").dataobj) == 1
    truth = nib.load(masks[0] / "truth" / f"{name}.nii.gz")
    lesion = np.asarray(truth.dataobj) == 1
    spacing = truth.header.get_zooms()
    inside = ndimage.distance_transform_edt(lesion, spacing) > 4
    near = ndimage.distance_transform_edt(~lesion, spacing) < 4
    assert inside.sum() > 100
    assert mask[inside].all()
    assert not mask[~near].any()


@pytest.mark.parametrize("name", ["flipped", "turned"])
def test_how_a_scan_is_stored_changes_nothing(name: str, masks: tuple[Path, Path]) -> None:
    """The probability of every place is the same."""
    first, other = (nib.load(masks[1] / f"{n}_probability.nii.gz") for n in ("oblique", name))
    back = nib.as_closest_canonical(other).get_fdata()
    np.testing.assert_allclose(back, nib.as_closest_canonical(first).get_fdata(), atol=1e-3)


def test_several_classes(tmp_path: Path) -> None:
    """The mask holds the likeliest class above the threshold, by its place in the list; the map has all of them."""
    (tmp_path / "scans").mkdir()
    image, _ = planted()
    nib.save(image, tmp_path / "scans" / "a.nii.gz")
    network = {**SETTINGS["network_def"], "levels": [9.0, 0.0, 2.0]}
    # air is -1, the body 1, the lesion 3: there is no metal, and where a lesion is likely, body is likelier
    changes = {"classes": {"metal": [3], "body": [1], "lesion": [2]}, "network_def": network}
    infer(tmp_path / "scans", tmp_path / "out", **changes)
    assert nib.load(tmp_path / "out" / "a_probability.nii.gz").shape == (*SHAPE, 3)
    assert set(np.unique(nib.load(tmp_path / "out" / "a_pred.nii.gz").dataobj)) == {0, 2}
    infer(tmp_path / "scans", tmp_path / "high", **changes, threshold=1.1, save_probability="false")
    assert [file.name for file in (tmp_path / "high").iterdir()] == ["a_pred.nii.gz"]
    assert not np.asarray(nib.load(tmp_path / "high" / "a_pred.nii.gz").dataobj).any()


def test_scans_of_one_name_do_not_replace_one_another(tmp_path: Path) -> None:
    """Results repeat the folders that the scans lie in; dots in names, as series' identifiers have them, stay."""
    image, _ = planted(np.diag([3.0, 3.0, 4.0, 1.0]), (20, 20, 16))
    names = ["p1/ct.nii.gz", "p2/ct.nii.gz", "p3/ct.v1.nii.gz", "p3/ct.v2.nii.gz"]
    for name in names:
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, tmp_path / "scans" / name)
    import SimpleITK as sitk  # noqa: N813

    volume = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "scans" / names[0]), sitk.sitkInt16), "LPS")
    write_dicom(volume, tmp_path / "scans" / "1.2.840.98")
    items = [{"image": name, "subject": f"patient {i}"} for i, name in enumerate([*names, "1.2.840.98"])]
    (tmp_path / "scans" / "datalist.json").write_text(json.dumps({"test": items}))
    infer(tmp_path / "scans", tmp_path / "out", step=4, save_probability=False)
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.nii.gz")}
    stems = ["p1/ct", "p2/ct", "p3/ct.v1", "p3/ct.v2", "1.2.840.98"]
    assert found == {str(Path(f"{stem}_pred.nii.gz")) for stem in stems}


def as_monai_label_runs_it(parser: ConfigParser, request: Mapping[str, Any]) -> dict[str, Any]:
    """Each transform by itself on a dictionary of the request, as tasks/infer/bundle.py of MONAI Label 0.8.5 does."""
    data = dict(request)
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
        data["latencies"] = {}
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    return data


def test_monai_label_gets_a_mask_on_the_original_grid(masks: tuple[Path, Path]) -> None:
    """No entry of the request is dropped; what is written with the image's own geometry is right."""
    path = str(masks[0] / "images" / "turned.nii.gz")
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "inference.json"))
    parser.update({**SETTINGS, "device": "cpu", "bundle_root": str(CONFIGS.parent)})
    request = {"image": path, "image_path": path, "model": "isimed", "device": "cpu", "model_filename": ["model.pt"]}
    data = as_monai_label_runs_it(parser, request)
    assert request.keys() <= data.keys()
    assert data["image_path"] == path
    saved = nib.load(masks[1] / "turned_pred.nii.gz")
    assert isinstance(data["pred"], MetaTensor)
    assert data["pred"].dtype == torch.uint8
    np.testing.assert_array_equal(data["pred"][0].numpy(), np.asarray(saved.dataobj))
    assert tuple(data["image"].meta["spatial_shape"]) == saved.shape
    np.testing.assert_allclose(data["image"].meta["original_affine"], saved.affine, atol=1e-4)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Another network's, another number of classes, none at all: nothing is run with random weights."""
    (tmp_path / "scans").mkdir()
    nib.save(planted()[0], tmp_path / "scans" / "a.nii.gz")
    changes = {key: TINY[key] for key in ("crop_size", "crop_spacing", "encoder", "embedding_size")}
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "inference.json"))
    parser.update({**changes, "classes": {"a": [1], "b": [2]}})
    torch.save({"model": parser.get_parsed_content("network_def").state_dict()}, tmp_path / "model.pt")
    for name, message in (("absent.pt", "no weights at"), ("model.pt", "fit")):
        network = {"_target_": "anatomy_ssl.networks.EncoderWithClassifier", "encoder": "@encoder"}
        network |= {"num_features": 8, "num_classes": "$len(@classes)"}
        with pytest.raises(RuntimeError) as refused:
            infer(
                tmp_path / "scans",
                tmp_path / "out",
                **{**changes, "checkpoint": str(tmp_path / name), "network_def": network},
            )
        assert message in repr(refused.value.__cause__)
    assert not (tmp_path / "out").exists()
