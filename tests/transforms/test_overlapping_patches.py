"""Two patches of a volume: the points that are said to be the same lie at the same place in the world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from anatomy_ssl.data.reading import BadImageError
from anatomy_ssl.losses.pixel_contrast import at_points
from anatomy_ssl.transforms import RandOverlappingPatchesd
from tests.volumes import ramp_volume

AFFINES = {
    2: np.array([[1.5, 0, 7.0], [0, 1.5, -3.0], [0, 0, 1]]),
    3: np.array([[2.0, 0, 0, -50], [0, 2.0, 0, 20], [0, 0, 2.0, 5], [0, 0, 0, 1]]),
}


def item(dims: int, low: float = 12.0, high: float = 28.0) -> dict:
    """A volume of 40 voxels along each axis whose values are its world coordinates; its middle is the body."""
    volume = ramp_volume(AFFINES[dims], (40,) * dims)
    axis = np.arange(low, high, 4.0)
    index = np.stack(np.meshgrid(*[axis] * dims, indexing="ij"), -1).reshape(-1, dims)
    body = index @ AFFINES[dims][:dims, :dims].T + AFFINES[dims][:dims, -1]
    return {"image": volume, "foreground": torch.from_numpy(body).float(), "subject": "a"}


def values_at(patch: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """A patch `(C, *size)` at voxels `(P, D)`, linearly interpolated, by plain sums over the corners."""
    found = []
    for point in points.double():
        low = point.floor().long().clamp(max=torch.tensor(patch.shape[1:]) - 2).clamp(min=0)
        share, total = point - low, torch.zeros(len(patch), dtype=torch.float64)
        for corner in torch.cartesian_prod(*[torch.arange(2)] * len(point)):
            weight = torch.where(corner.bool(), share, 1 - share).prod()
            total += weight * patch[(slice(None), *(low + corner).tolist())].double()
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("rotation", [0.0, 0.5])
def test_points_are_the_same_place_in_both_patches(dims: int, rotation: float) -> None:
    """In volumes whose values are world coordinates, which linear interpolation keeps."""
    cut = RandOverlappingPatchesd("image", (14,) * dims, num_points=30, num_pairs=3, rotation=rotation)
    cut.set_random_state(0)
    pairs = cut(item(dims))
    assert len(pairs) == 3
    for pair in pairs:
        world = [values_at(pair[f"image_{v}"], pair[f"points_{v}"]) for v in (1, 2)]
        assert torch.allclose(world[0], world[1], atol=2e-3)
        assert pair["image_1"].shape == (dims, *(14,) * dims)
        assert not isinstance(pair["image_1"], MetaTensor) and "foreground" not in pair
        assert all((pair[f"points_{v}"] >= 0).all() and (pair[f"points_{v}"] <= 13).all() for v in (1, 2))


def test_points_belong_to_the_body() -> None:
    given = item(3)
    pair = RandOverlappingPatchesd("image", (14,) * 3, num_points=50).set_random_state(1)(given)[0]
    world = values_at(pair["image_1"], pair["points_1"]).float()
    assert (torch.cdist(world, given["foreground"]).min(dim=1).values <= 1.5 * 2 * 3**0.5 + 0.01).all()


def test_patches_differ_and_are_drawn_anew_from_the_seed() -> None:
    cut = RandOverlappingPatchesd("image", (14,) * 3)
    first, again, other = (cut.set_random_state(seed)(item(3))[0] for seed in (0, 0, 1))
    assert torch.equal(first["image_1"], again["image_1"]) and torch.equal(first["points_2"], again["points_2"])
    assert not torch.equal(first["image_1"], other["image_1"])
    assert not torch.equal(first["image_1"], first["image_2"])


def test_beyond_the_volume_is_background() -> None:
    """Patches at the edge keep their geometry; nothing is moved into the volume."""
    given = item(3, low=0.0, high=2.0)
    given["image"] = MetaTensor(torch.full((1, 40, 40, 40), 3.0), affine=given["image"].affine)
    pair = RandOverlappingPatchesd("image", (14,) * 3, background=-1.0).set_random_state(0)(given)[0]
    patch = pair["image_1"]
    assert patch.min() == -1.0 and patch.max() == pytest.approx(3.0)
    inside = at_points(patch[None] + 2, pair["points_1"][None])
    assert inside.shape == (1, 100, 1)


def test_a_volume_without_shared_points_is_named() -> None:
    given = {**item(3), "source": "scan_7.nii.gz"}
    given["foreground"] = given["foreground"][:1]
    cut = RandOverlappingPatchesd("image", (2, 2, 2), max_shift=0.9).set_random_state(0)
    cut.tries = 0
    with pytest.raises(BadImageError, match=r"scan_7.*lower max_shift"):
        cut(given)
    with pytest.raises(ValueError, match="zoom"):
        RandOverlappingPatchesd("image", (2, 2), zoom=(0.0, 1.0))
