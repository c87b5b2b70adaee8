"""Tokens of whole images lie where they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from anatomy_ssl.data.tokens import TokenMap
from anatomy_ssl.engines.tokens import TokenExtraction, TokenInferer
from anatomy_ssl.transforms import LoadVolumed, PixelFramed, ResizeToCoverd


class MeanOfCells(torch.nn.Module):
    """An encoder whose tokens are the means of their cells: where the intensity is the position, tokens tell it."""

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell, self.windows = cell, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.windows += len(x)
        pool = torch.nn.functional.avg_pool3d if x.ndim == 5 else torch.nn.functional.avg_pool2d
        return pool(x, self.cell)


@pytest.mark.parametrize("cell", [4, 6, 7])
@pytest.mark.parametrize("grid", [(3, 5), (6, 4), (9, 11), (2, 2)])
def test_windows_put_every_token_at_its_cell(cell: int, grid: tuple[int, int]) -> None:
    x = torch.rand(1, 1, *[n * cell for n in grid])
    encoder = MeanOfCells(cell)
    tokens = TokenInferer((4, 4), cell, batch_size=3)(x, encoder)
    torch.testing.assert_close(tokens, torch.nn.functional.avg_pool2d(x, cell))
    assert encoder.windows >= 1


def test_middle_of_a_window_counts_more() -> None:
    """Of what a network says of a cell in several windows."""

    class Column(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.arange(4.0).expand(len(x), 1, 4, 4)

    tokens = TokenInferer((4, 4), 2)(torch.zeros(1, 1, 8, 12), Column())[0, 0]
    assert tokens[:, 0].tolist() == [0.0] * 4
    # the third column is the last but one of the first window and the first of the second, which knows less of it
    assert 1 < tokens[0, 2] < 2


@pytest.mark.parametrize("shifts", [2, 4])
def test_shifted_tokens_lie_between(shifts: int) -> None:
    """On a ramp every token is the value at its centre."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    inferer = TokenInferer((2, 3), 8, shifts=shifts)
    for k, ramp in enumerate((rows, columns)):
        tokens = inferer(ramp[None, None], MeanOfCells(8))[0, 0]
        assert tokens.shape == (2 * shifts + 1, 3 * shifts + 1)
        index = np.indices(tokens.shape)[k]
        np.testing.assert_allclose(tokens, inferer.affine()[k, k] * index + inferer.affine()[k, 2], rtol=1e-5)


def test_images_that_are_no_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="whole cells"):
        TokenInferer((2, 2), 8)(torch.zeros(1, 1, 12, 16), MeanOfCells(8))
    with pytest.raises(ValueError, match="shifts must divide"):
        TokenInferer((2, 2), 8, shifts=3)


def encode(items: list[dict[str, Any]], transforms: list[Any], cell: int, dims: int, folder: Path) -> list[TokenMap]:
    """What is written for prepared items."""
    loader = [[Compose(transforms)(item)] for item in items]
    inferer = TokenInferer((3,) * dims, cell)
    extraction = TokenExtraction(MeanOfCells(cell), loader, inferer, str(folder), dtype="float32")
    return [TokenMap.load(path) for path in extraction.run()]


@pytest.mark.parametrize("size", [(60, 60), (61, 97), (150, 83), (41, 300), (33, 32)])
@pytest.mark.parametrize("axis", [0, 1])
def test_positions_are_the_files_pixels(tmp_path: Path, size: tuple[int, int], axis: int) -> None:
    """An image whose grey value is its row (or column): tokens are at the value that they have; nothing is cut off."""
    from monai.transforms import DivisiblePadd, Transposed

    values = np.indices(size)[axis].astype(np.uint16) * 100
    Image.fromarray(values).save(tmp_path / "a.png")
    steps = [
        LoadVolumed("image", spatial_dims=2),
        Transposed("image", indices=[0, 2, 1]),
        PixelFramed("image"),
        ResizeToCoverd("image", (48, 48), crop=False),
        DivisiblePadd("image", k=8, mode="edge"),
    ]
    item = {"image": str(tmp_path / "a.png"), "subject": "a", "spacing": [0.5, 0.25]}
    (tokens,) = encode([item], steps, 8, 2, tmp_path)
    assert tokens.image_size.tolist() == list(size)
    inside = (tokens.position >= -0.5) & (tokens.position <= np.array(size) - 0.5)
    assert inside.all()
    # the outermost tokens are less than a cell from the edge, and the cells reach over it
    assert (tokens.position[0, 0] <= tokens.cell_size).all()
    assert (tokens.position[-1, -1] >= size - tokens.cell_size - 1).all()
    np.testing.assert_allclose(tokens.cell_size, 8 * min(size) / 48, rtol=0.03)
    middle = (slice(1, -1), slice(1, -1))  # smoothing and the repeated border change the outermost cells
    found = tokens.tokens[0][middle] / 100
    np.testing.assert_allclose(found, tokens.position[..., axis][middle], atol=0.03 * tokens.cell_size.max())
    np.testing.assert_allclose(tokens.to_mm(tokens.position), tokens.position * [0.5, 0.25])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_positions_in_volumes_are_the_files_voxels_and_the_world(tmp_path: Path, codes: str) -> None:
    from monai.transforms import DivisiblePadd, Orientationd, Spacingd
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

    affine = np.diag([2.0, 3, 4, 1])
    affine[:3, 3] = -20, 30, 5
    shape = (40, 30, 22)
    index = np.indices(shape)
    world_x = affine[0, 0] * index[0] + affine[0, 3]
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = nib.apply_orientation(world_x, turn).astype(np.float32)
    nib.save(nib.Nifti1Image(stored, affine @ inv_ornt_aff(turn, shape)), tmp_path / "v.nii.gz")
    steps = [
        LoadVolumed("image"),
        PixelFramed("image"),
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=(3.0, 3.0, 3.0)),
        DivisiblePadd("image", k=6, mode="edge"),
    ]
    (tokens,) = encode([{"image": str(tmp_path / "v.nii.gz"), "subject": "v"}], steps, 6, 3, tmp_path)
    world = tokens.to_mm(tokens.position)
    assert world is not None
    middle = (slice(1, -1),) * 3
    np.testing.assert_allclose(tokens.tokens[0][middle], world[..., 0][middle], atol=0.2)
    assert tokens.image_size.tolist() == list(stored.shape)
    assert ((tokens.position > -1) & (tokens.position < np.array(stored.shape))).all()
    header = nib.load(tmp_path / "v.nii.gz").affine
    np.testing.assert_allclose(nib.affines.apply_affine(header, tokens.position), world, atol=1e-3)


def test_second_image_of_a_patient_gets_a_file_of_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / f"{name}.png")
    steps = [LoadVolumed("image", spatial_dims=2), PixelFramed("image")]
    items = [{"image": str(tmp_path / f"{name}.png"), "subject": "p/1"} for name in ("one", "two")]
    encode(items, steps, 8, 2, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["p_1.npz", "p_1_1_two.npz"]
