"""SAM, the Self-supervised Anatomical eMbedding: a vector for every voxel that says which anatomy lies there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from monai.networks.nets import ResNet
from torch import nn

from anatomy_ssl.networks.encoders import with_group_norm

__all__ = ["AnatomicalEmbedding"]


class AnatomicalEmbedding(nn.Module):
    """ResNet with a feature pyramid: a fine and a coarse embedding of every place (SAM, Yan et al., TMI 2022, fig. 2).

    The fine map tells neighbours apart, the coarse one, of a wide view, parts of the body. Both are unit vectors.
    Entry i of the fine map lies at voxel `fine_stride * i`, entry j of the coarse one at voxel `coarse_stride * j`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C of the images.
        features: F, length of either vector.
        channels: of the ResNet's stages, whose strides are 2, 4, 8, 16 voxels.
        layers: blocks of each stage; the default is a ResNet-18's.
        coarse_level: number of the stage, from 0, that the coarse map is made of; later stages are left out.
        norm: "group" (of 8 groups; the same alone and in a batch, in training and in use) or "batch".

    Raises:
        ValueError: for a `coarse_level` that is no stage beyond the first, or an unknown norm.
    """

    fine_stride = 2

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        features: int = 128,
        channels: Sequence[int] = (64, 128, 256, 512),
        layers: Sequence[int] = (2, 2, 2, 2),
        coarse_level: int = 3,
        norm: str = "group",
    ) -> None:
        super().__init__()
        if not 0 < coarse_level < len(channels) or len(channels) != len(layers) or len(channels) > 4:
            raise ValueError(
                f"coarse_level {coarse_level} has to be a stage after the first of {len(channels)} (max. 4)"
            )
        if norm not in ("group", "batch"):
            raise ValueError(f"norm has to be 'group' or 'batch', not {norm!r}")
        self.spatial_dims, self.features, self.levels = spatial_dims, features, coarse_level + 1
        self.coarse_stride = self.fine_stride * 2**coarse_level
        filled = [*channels, *([channels[-1]] * (4 - len(channels)))]
        resnet = ResNet(
            "basic",
            [*layers, *([1] * (4 - len(layers)))],
            filled,
            spatial_dims,
            in_channels,
            conv1_t_size=7,
            conv1_t_stride=2,
            no_max_pool=True,
            bias_downsample=False,
            feed_forward=False,
        )
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act)
        stages = [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
        self.stages = nn.ModuleList(stages[: self.levels])
        self.pyramid = FeaturePyramidNetwork(spatial_dims, list(filled[: self.levels]), features)
        for level in range(1, coarse_level):
            self.pyramid.layer_blocks[level] = nn.Identity()  # these levels only pass on what comes from above
        if norm == "group":
            with_group_norm(self, 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Embed images.

        Args:
            x: `(N, C, *spatial)`, sizes in multiples of `coarse_stride`.

        Returns:
            `fine` `(N, F, *spatial / fine_stride)` and `coarse` `(N, F, *spatial / coarse_stride)`, float32 unit
            vectors.

        Raises:
            ValueError: for other sizes.
        """
        if any(size % self.coarse_stride for size in x.shape[2:]):
            raise ValueError(
                f"images of {tuple(x.shape[2:])} voxels do not divide into cells of {self.coarse_stride}: pad them"
            )
        maps: OrderedDict[str, torch.Tensor] = OrderedDict()
        y = self.stem(x)
        for level, stage in enumerate(self.stages):
            maps[str(level)] = y = stage(y)
        found = list(self.pyramid(maps).values())
        return {name: F.normalize(m.float(), dim=1) for name, m in (("fine", found[0]), ("coarse", found[-1]))}
