from __future__ import annotations

from typing import Any

import pytest
import torch

from anatomy_ssl.engines.ten_crop import TenCropInferer


class Corner(torch.nn.Module):
    """Logits: the first voxel of each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C)` of `(N, C, *roi)`."""
        return x[(slice(None), slice(None), *[0] * (x.ndim - 2))]


def images(*sizes: int, channels: int = 1) -> torch.Tensor:
    """Every voxel another value."""
    return torch.arange(2.0 * channels * torch.tensor(sizes).prod()).reshape(2, channels, *sizes)


@pytest.mark.parametrize(("sizes", "count"), [((9,), 3), ((7, 9), 5), ((5, 6, 7), 9)])
@pytest.mark.parametrize("mirror", [False, True])
def test_crops_are_centre_and_corners(sizes: tuple[int, ...], count: int, mirror: bool) -> None:
    """2 ** d + 1, all different, of the right size, and each corner of the image in one of them."""
    roi = [4] * len(sizes)
    x = images(*sizes)
    crops = TenCropInferer(roi, mirror=mirror).crops(x)
    assert len(crops) == count * (2 if mirror else 1)
    assert all(list(crop.shape) == [2, 1, *roi] for crop in crops)
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == len(crops)
    centre = x[(slice(None), slice(None), *[slice((n - 4) // 2, (n - 4) // 2 + 4) for n in sizes])]
    assert torch.equal(crops[0], centre)
    corners = x[(0, 0, *torch.meshgrid(*[torch.tensor([0, n - 1]) for n in sizes], indexing="ij"))].flatten()
    assert all(any(bool((crop == value).any()) for crop in crops[1:count]) for value in corners)


def test_mirrored_crops_are_mirrored_left_to_right() -> None:
    crops = TenCropInferer([3, 4], mirror=True).crops(images(5, 6))
    for crop, mirrored in zip(crops[:5], crops[5:]):
        assert torch.equal(crop.flip(3), mirrored)


@pytest.mark.parametrize("exclusive", [False, True])
def test_probabilities_are_averaged(exclusive: bool) -> None:
    """Those of the returned logits are the mean of the crops' own."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 7, 7)
    inferer = TenCropInferer([4, 4], mirror=True, exclusive=exclusive)

    def activate(logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=1) if exclusive else logits.sigmoid()

    expected = torch.stack([activate(Corner()(crop)) for crop in inferer.crops(x)]).mean(dim=0)
    torch.testing.assert_close(activate(inferer(x, Corner())), expected)


def test_certainty_is_not_rounded_away() -> None:
    """Crops that agree on a logit of 60, whose probability is 1 in any precision, give it back."""
    for value in (60.0, -60.0):
        x = torch.full((1, 1, 6, 6), value)
        torch.testing.assert_close(TenCropInferer([4, 4])(x, Corner()), torch.tensor([[value]]))


def test_one_crop_is_the_network_alone() -> None:
    """On images of the crop's size, or without corners."""
    seen: list[tuple[int, ...]] = []

    def network(crop: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(crop.shape))
        return Corner()(crop)

    x = images(4, 4)
    assert torch.equal(TenCropInferer([4, 4])(x, network), Corner()(x))
    larger = images(8, 8)
    assert torch.equal(TenCropInferer([4, 4], corners=False)(larger, network), Corner()(larger[:, :, 2:6, 2:6]))
    assert seen == [(2, 1, 4, 4)] * 2


@pytest.mark.parametrize(
    ("x", "roi", "message"),
    [
        (images(7, 3), [4, 4], r"\(7, 3\) voxels hold no crop of \(4, 4\)"),
        (images(7, 7, 7), [4, 4], "hold no crop"),
    ],
)
def test_images_that_do_not_fit_are_named(x: torch.Tensor, roi: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TenCropInferer(roi)(x, Corner())


def test_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="not logits"):
        TenCropInferer([4, 4])(images(6, 6), lambda x: x)


@pytest.mark.parametrize("options", [{"roi_size": [4, 0]}, {"roi_size": []}, {"roi_size": [4, 4], "mirror_axis": 2}])
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"roi_size|mirror_axis"):
        TenCropInferer(**options)
