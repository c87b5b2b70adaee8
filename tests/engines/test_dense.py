"""The map of embeddings lies where it says, and neither it nor a crop's embedding depends on how a volume is stored."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose, Orientationd, ScaleIntensityRangePercentilesd, Spacing
from torch import nn

from anatomy_ssl.data.dataset import ScanDataset
from anatomy_ssl.engines.dense import GridEmbeddingInferer
from anatomy_ssl.engines.embedding import embed_crops
from anatomy_ssl.transforms import ForegroundPointsd, LoadVolumed, RandPhysicalCropsd, crops_at
from anatomy_ssl.transforms.points import voxel_to_world
from tests.volumes import ramp_volume, smooth_volume

OBLIQUE = {
    2: np.array([[1.6, -1.2, 10.0], [1.2, 1.6, -4.0], [0.0, 0.0, 1.0]]),
    3: nib.affines.from_matvec(
        np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([2.0, 2.5, 3.0]), [-40.0, 25.0, 7.0]
    ),
}


def conv_encoder(dims: int = 3, channels: int = 1) -> nn.Module:
    """Small, but it looks at everything in a crop."""
    torch.manual_seed(0)
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return nn.Sequential(
        conv(channels, 8, 3, padding=1), nn.ReLU(), conv(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6)
    )


def mean(crops: torch.Tensor) -> torch.Tensor:
    """A network that gives a crop's mean value per channel."""
    return crops.flatten(2).mean(2)


def world_of(grid: MetaTensor) -> torch.Tensor:
    """World mm `(N, D)` of a map's cells, in the order of `flatten`."""
    return voxel_to_world(grid.affine, torch.cartesian_prod(*[torch.arange(n) for n in grid.shape[2:]]))


@pytest.mark.parametrize("step", [1, 3, (2, 4, 5)])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_affine_places_the_crops_centres(dims: int, step: int | tuple[int, ...]) -> None:
    """In a volume of world coordinates, a crop's mean is its centre."""
    volume = ramp_volume(OBLIQUE[dims], (13, 10, 9)[:dims])
    roi, step = (4, 3, 5)[:dims], step[:dims] if isinstance(step, tuple) else step
    batch = list_data_collate([{"image": volume}])["image"]
    grid = GridEmbeddingInferer(roi, step, batch_size=7)(batch, mean)
    assert grid.shape[2:] == tuple(
        (n - r) // s + 1 for n, r, s in zip(volume.shape[1:], roi, np.broadcast_to(step, dims))
    )
    assert torch.allclose(grid.as_tensor()[0].flatten(1).T, world_of(grid), atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_map_is_the_embedding_of_each_crop_by_hand(dims: int) -> None:
    """Cutting the crops one by one at the stated positions gives the same rows, whatever the batch size."""
    torch.manual_seed(1)
    volume = MetaTensor(torch.randn(2, *(14, 12, 11)[:dims]), affine=torch.from_numpy(OBLIQUE[dims]))
    roi, encoder = (6, 4, 5)[:dims], conv_encoder(dims, 2)
    with torch.no_grad():
        for batch_size in (1, 4, 100):
            grid = GridEmbeddingInferer(roi, 4, batch_size)(volume[None], encoder)
            crops, position = crops_at(volume, world_of(grid), roi)
            assert torch.allclose(position, world_of(grid), atol=1e-4)
            assert torch.allclose(grid.as_tensor()[0].flatten(1).T, encoder(crops), atol=1e-5)


def test_a_volume_smaller_than_the_crop_is_padded_about_its_middle() -> None:
    """One crop fits then, and its centre is that of the volume."""
    volume = ramp_volume(OBLIQUE[3], (4, 9, 6))
    grid = GridEmbeddingInferer((8, 3, 10), 3)(volume[None], mean)
    assert grid.shape[2:] == (1, 3, 1)
    middle = voxel_to_world(volume.affine, torch.tensor([[1.5, y, 2.5] for y in (1.0, 4.0, 7.0)]))
    assert torch.allclose(world_of(grid), middle, atol=1e-4)
    assert torch.allclose(grid.as_tensor()[0].flatten(1).T, middle, atol=1e-4)


@pytest.mark.parametrize("spacing", [None, (1.5, 3.0, 2.0)], ids=["voxels", "mm"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_map_like_the_input_has_its_voxels(dims: int, spacing: tuple[float, ...] | None) -> None:
    """In a volume of world coordinates, a voxel's value is its own place, up to half a crop from the edges."""
    volume = ramp_volume(OBLIQUE[dims], (20, 17, 15)[:dims])
    batch = list_data_collate([{"image": volume}])["image"]
    roi, spacing = (4, 3, 5)[:dims], None if spacing is None else spacing[:dims]
    for to_edges in (False, True):
        infer = GridEmbeddingInferer(roi, 2, spacing=spacing, to_edges=to_edges, like_input=True)
        found = infer(batch, mean)
        assert found.shape == batch.shape
        assert torch.allclose(found.affine[:dims, :dims], volume.affine[:dims, :dims].double())
        assert torch.allclose(found.affine[:dims, -1], volume.affine[:dims, -1].double())
        inner = (slice(None), *[slice(7, -7)] * dims)
        assert torch.allclose(found[0].as_tensor()[inner], volume.as_tensor()[inner], atol=0.02)
        assert found.min() >= volume.min() - 1e-3
        assert found.max() <= volume.max() + 1e-3


def test_crops_of_a_spacing_are_cut_from_the_resampled_volume() -> None:
    """The map is that of the same volume resampled before, wherever its voxels come from."""
    volume = MetaTensor(
        torch.from_numpy(smooth_volume((18, 16, 20))).float()[None], affine=torch.from_numpy(OBLIQUE[3])
    )
    encoder = conv_encoder()
    with torch.no_grad():
        direct = GridEmbeddingInferer((6, 6, 6), 4, spacing=(2.0, 2.0, 3.0))(volume[None], encoder)
        before = Spacing((2.0, 2.0, 3.0), diagonal=True)(volume)
        by_hand = GridEmbeddingInferer((6, 6, 6), 4)(before[None], encoder)
    assert torch.equal(direct.as_tensor(), by_hand.as_tensor())
    assert torch.allclose(direct.affine, by_hand.affine)


@pytest.mark.parametrize("like_input", [False, True])
def test_a_volume_of_one_cell(like_input: bool) -> None:
    """Smaller than the crop along each axis: one value, at every voxel."""
    volume = ramp_volume(OBLIQUE[3], (4, 6, 2))
    found = GridEmbeddingInferer((8, 8, 8), 8, like_input=like_input)(volume[None], mean)
    assert found.shape[2:] == ((4, 6, 2) if like_input else (1, 1, 1))
    middle = voxel_to_world(volume.affine, torch.tensor([[1.5, 2.5, 0.5]]))[0]
    assert torch.allclose(found.as_tensor()[0].flatten(1), middle[:, None].expand(3, found[0, 0].numel()), atol=1e-3)


@pytest.mark.parametrize("third_axis", [False, True])
def test_two_dimensional_files_take_the_whole_chain(third_axis: bool, write_nifti: Callable[..., str]) -> None:
    """Also where the format wants a third axis of one slice: from file to crops and to a map, at the same places."""
    values = smooth_volume((30, 26))
    path = write_nifti("flat.nii.gz", values[..., None] if third_axis else values, np.diag([2.0, 3.0, 1.0, 1.0]))
    prepare = [
        LoadVolumed("image", spatial_dims=2),
        Orientationd("image", "RA", labels=None),
        ForegroundPointsd("image"),
    ]
    draw = RandPhysicalCropsd("image", (6, 6), 3, candidates="foreground")
    data = ScanDataset([{"image": path, "subject": "a"}], [*prepare, draw], progress=False)
    emb = embed_crops(nn.Flatten(), DataLoader(data), "cpu")
    batch = list_data_collate([Compose(prepare)({"image": path})])["image"]
    grid = GridEmbeddingInferer((6, 6), 1)(batch, nn.Flatten())
    cells = {tuple(at): row for at, row in zip(world_of(grid).tolist(), grid.as_tensor()[0].flatten(1).T.numpy())}
    for position, row in zip(emb.position.tolist(), emb.embedding):
        assert np.array_equal(cells[tuple(position)], row)


def test_wrong_input_is_named() -> None:
    """Batches of several volumes, other dimensions, sizes that are not positive."""
    infer = GridEmbeddingInferer((4, 4, 4))
    for shape in ((2, 1, 8, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match="one volume"):
            infer(torch.zeros(shape), mean)
    with pytest.raises(ValueError, match="must be positive"):
        GridEmbeddingInferer((4, 4, 4), step=0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One oblique volume in all 48 orientations, written as NIfTI."""
    folder: Path = tmp_path_factory.mktemp("orientations")
    image = nib.Nifti1Image(smooth_volume((20, 18, 22)), OBLIQUE[3])
    paths = []
    for axes, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        path = folder / f"{len(paths)}.nii.gz"
        nib.save(image.as_reoriented(np.array(list(zip(axes, flips)))), path)
        paths.append(str(path))
    assert len({nib.aff2axcodes(nib.load(path).affine) for path in paths}) == 48
    return paths


def preparation() -> list:
    """The deterministic part of the bundle's chain."""
    return [
        LoadVolumed("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        ForegroundPointsd("image"),
        ScaleIntensityRangePercentilesd("image", lower=5, upper=95, b_min=-1, b_max=1),
    ]


@pytest.mark.parametrize("spacing", [None, (2.5, 2.0, 2.0)], ids=["voxels", "mm"])
def test_embeddings_of_a_crop_agree_in_all_48_orientations(
    spacing: tuple[float, ...] | None, stored: list[str]
) -> None:
    """From the file on disk to the embedding: same places in the world, same embeddings to 1e-4."""
    draw = RandPhysicalCropsd("image", (8, 8, 8), 6, spacing=spacing, candidates="foreground")
    # epoch and index seed the draw, so that each file is a data set of its own
    parts = [ScanDataset([{"image": p, "subject": "a"}], [*preparation(), draw], progress=False) for p in stored]
    encoder = conv_encoder()
    embedded = [embed_crops(encoder, DataLoader(part), "cpu") for part in parts]
    first = embedded[0]
    assert np.ptp(first.embedding, axis=0).min() > 1e-2
    for other in embedded:
        assert np.abs(other.position - first.position).max() < 1e-3
        assert np.abs(other.embedding - first.embedding).max() < 1e-4


@pytest.mark.parametrize("spacing", [None, (2.5, 2.0, 2.0)], ids=["voxels", "mm"])
def test_maps_agree_in_all_48_orientations(spacing: tuple[float, ...] | None, stored: list[str]) -> None:
    """The same for the dense map, by the chain of embed.yaml."""
    data = Dataset([{"image": path} for path in stored], Compose(preparation()))
    infer, encoder = GridEmbeddingInferer((8, 8, 8), 6, spacing=spacing), conv_encoder()
    with torch.no_grad():
        maps = [infer(batch["image"], encoder) for batch in DataLoader(data, batch_size=1)]
    for other in maps:
        assert torch.allclose(other.affine, maps[0].affine, atol=1e-4)
        assert (other.as_tensor() - maps[0].as_tensor()).abs().max() < 1e-4
