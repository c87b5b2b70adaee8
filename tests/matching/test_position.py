"""Matching in a positional latent space: exact where the space is exact, between the nodes of its grid too."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from anatomy_ssl.matching.position import PositionMatcher
from tests.matching.bodies import ORIENTATIONS, stored_as, write_body
from tests.volumes import ramp_volume

SHAPE = (20, 16, 22)
POINTS = torch.tensor([[0.0, 0, 0], [31, -22, 48], [-37, 11, -63]])


class Position(nn.Module):
    """A perfect encoder of volumes that show their own coordinates: the middle of a crop, in units of 100 mm."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.cat([crops.flatten(2).mean(2), crops.flatten(2).mean(2).flip(1)], dim=1) / 100 / 2**0.5


def ramps(tmp_path: Path, stretch: float):
    """Two volumes of coordinates, of which the second was stretched; and the preparation that gives them."""
    made, items = {}, []
    for name, factor in (("a", 1.0), ("b", stretch)):
        affine = nib.affines.from_matvec(np.diag([8.0, 8.0, 8.0]) * factor, np.array([-80.0, -64, -88]) * factor)
        path = str(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine), path)
        volume = ramp_volume(affine, SHAPE)
        made[path] = (volume / factor) if factor != 1 else volume
        items.append({"image": path})
    return items, [lambda data: {"image": made[data["image"]]}]


@pytest.mark.parametrize("step", [2, 4])
def test_a_perfect_space_gives_perfect_matches(tmp_path: Path, step: int) -> None:
    items, preparation = ramps(tmp_path, 1.2)
    matcher = PositionMatcher(Position(), (3, 3, 3), step=step, preparation=preparation)
    points = torch.tensor([[1.0, 2, 3], [21, -12, 30], [-27, 9, -35]])
    matches = matcher(*items, points)
    assert (matches.points - 1.2 * points).abs().max() < 0.05
    assert matches.scores.min() > 0.999
    rough = PositionMatcher(Position(), (3, 3, 3), step=step, preparation=preparation, refine=False)
    error = (rough(*items, points).points - 1.2 * points).abs().max()
    assert 0.1 < error <= 1.2 * 8 * step / 2 + 1e-3


def test_scores_are_the_distance_in_reference_lengths(tmp_path: Path) -> None:
    """The nearest place of a volume that begins 40 mm further on is 40 mm away: 0.6."""
    items, preparation = ramps(tmp_path, 1.0)
    far = ramp_volume(np.diag([8.0, 8, 8, 1]), SHAPE)
    given = preparation[0]
    both = [lambda data: {"image": far} if data["image"] == items[1]["image"] else given(data)]
    matcher = PositionMatcher(Position(), (1, 1, 1), step=2, preparation=both, refine=False)
    matches = matcher(*items, torch.tensor([[-40.0, 16, 16]]))
    assert matches.scores.item() == pytest.approx(0.6, abs=0.01)


def conv_encoder() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 8, 3), nn.Tanh(), nn.Conv3d(8, 8, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(16)]
    network = nn.Sequential(*layers)
    network(torch.zeros(1, 1, 8, 8, 8))
    return network


@pytest.mark.parametrize("spacing", [None, (6.0, 6.0, 6.0)])
def test_a_volume_is_matched_to_itself(tmp_path: Path, spacing) -> None:
    """The crop at a node of the grid is the query's own."""
    item = write_body(tmp_path / "a.nii.gz")
    matcher = PositionMatcher(conv_encoder(), (8, 8, 8), spacing, step=4)
    grid = matcher.latent_map(item)
    nodes = torch.tensor([[3, 4, 5], [4, 3, 6], [6, 5, 4]])
    points = (nodes.double() @ grid.affine[:3, :3].T + grid.affine[:3, 3]).float()
    assert torch.allclose(matcher.encode(item, points), grid.values[tuple(nodes.T)], atol=1e-4)
    matches = matcher(item, item, points)
    assert (matches.points - points).abs().max() < 0.05 and matches.scores.min() > 0.99


def test_the_storage_orientation_changes_nothing(tmp_path: Path) -> None:
    pair = write_body(tmp_path / "a.nii.gz"), write_body(tmp_path / "b.nii.gz", lambda x: 0.9 * x)
    matcher = PositionMatcher(conv_encoder(), (8, 8, 8), step=8)
    expected = matcher(*pair, POINTS)
    for number in (5, 18, 31, 47):
        source = stored_as(pair[0], ORIENTATIONS[number], tmp_path / f"a{number}.nii.gz")
        target = stored_as(pair[1], ORIENTATIONS[number - 3], tmp_path / f"b{number}.nii.gz")
        found = matcher(source, target, POINTS)
        assert (found.points - expected.points).abs().max() < 0.1
        assert torch.allclose(found.scores, expected.scores, atol=1e-3)


def test_maps_are_kept_in_the_store(tmp_path: Path, caplog) -> None:
    """By the image's content and the encoder's weights; a damaged one is made anew."""
    item, store = write_body(tmp_path / "a.nii.gz"), tmp_path / "store"
    values = PositionMatcher(conv_encoder(), (8, 8, 8), step=8, store=store).latent_map(item).values
    (file,) = store.iterdir()

    again = PositionMatcher(conv_encoder(), (8, 8, 8), step=8, store=store)
    again._computed_map = None  # type: ignore[assignment, method-assign]
    assert torch.equal(again.latent_map(item).values, values)

    other = conv_encoder()
    nn.init.zeros_(other[0].weight)
    PositionMatcher(other, (8, 8, 8), step=8, store=store).latent_map(item)
    assert len(list(store.iterdir())) == 2

    file.write_bytes(file.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        anew = PositionMatcher(conv_encoder(), (8, 8, 8), step=8, store=store).latent_map(item)
    assert torch.equal(anew.values, values) and "damaged" in caplog.text


def test_the_similarity_is_highest_at_the_point_itself(tmp_path: Path) -> None:
    items, preparation = ramps(tmp_path, 1.0)
    matcher = PositionMatcher(Position(), (3, 3, 3), step=2, preparation=preparation)
    similarity = matcher.similarity(*items, torch.tensor([20.0, -20, 30]))
    best = np.unravel_index(int(similarity.as_tensor()[0].argmax()), similarity.shape[1:])
    place = nib.affines.apply_affine(similarity.affine.numpy(), best)
    assert np.abs(place - [20, -20, 30]).max() <= 8.0
    assert similarity.max() <= 1 and similarity.min() >= -1


def test_a_point_outside_of_the_source(tmp_path: Path) -> None:
    item = write_body(tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="outside"):
        PositionMatcher(conv_encoder(), (8, 8, 8))(item, item, torch.tensor([[900.0, 0, 0]]))
