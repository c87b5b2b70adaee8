"""Alice's reference network: a hierarchical transformer of windows, whose decoder has cross-attention."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks.pos_embed_utils import build_sincos_position_embedding
from monai.networks.layers.factories import Conv
from monai.networks.nets.swin_unetr import BasicLayer, WindowAttention
from monai.utils import ensure_tuple_rep
from torch import nn

from anatomy_ssl.networks.cross_windows import ChannelNorm, DecoderStage

__all__ = ["HierarchicalTransformer", "released_index"]

PATCH_SIZE = 2


class HierarchicalTransformer(nn.Module):
    """The nnFormer-like encoder-decoder of Alice (Jiang et al. 2023, arXiv 2302.05615; Zhou et al., arXiv 2109.03201).

    Convolutions embed patches of 2 voxels and halve the grid between stages of (shifted) window attention. Each stage
    of the decoder doubles the grid, attends from what it has to the encoder's map of that size, and goes on with
    shifted windows; a transposed convolution gives voxels again. Grids are padded to windows. The position embedding is
    a buffer in the state dict: sines, interpolated for images of another size than `img_size`.

    Weights are named as in the authors' files but for a few renamed modules (`weights.released_alice`).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        out_channels: channels of the restored image, or classes.
        img_size: voxels along each axis; tables of relative positions are for windows that fit into its grids.
        embed_dim: features of the first stage; each later one has twice as many. A multiple of 6 in 3D, of 4 in 2D.
        depths: blocks of each stage; those of the decoder have as many.
        num_heads: attention heads of each stage.
        window_size: tokens of each stage's windows along each axis; no larger than the stage's grid.
        drop_path_rate: stochastic depth of the encoder's last block; rises linearly to it, the decoder's mirrors it.
        released: be the network of the authors' files, whose tables of relative positions are looked up so that several
            offsets share a bias (the first axis counts 3w - 1, not (2w - 1)^2), and whose position embedding is not in
            the files: zeros, unless the weights bring one. 3D only.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 1,
        img_size: Sequence[int] | int = 64,
        embed_dim: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        window_size: Sequence[int] | int = (4, 4, 8, 4),
        drop_path_rate: float = 0.0,
        released: bool = False,
    ) -> None:
        super().__init__()
        stages = len(depths)
        sizes = [window_size] * stages if isinstance(window_size, int) else list(window_size)
        if stages < 2 or len(num_heads) != stages or len(sizes) != stages:
            raise ValueError(
                f"depths {list(depths)}, num_heads {list(num_heads)} and window_size {sizes} must name the same "
                "stages, two at least"
            )
        if any(embed_dim * 2**stage % heads for stage, heads in enumerate(num_heads)):
            raise ValueError(
                f"num_heads {list(num_heads)} must divide the features {embed_dim} * 2**stage of each stage"
            )
        self.cell_size = PATCH_SIZE * 2 ** (stages - 1)
        self.img_size = ensure_tuple_rep(img_size, spatial_dims)
        self._check_cells(self.img_size)
        grids = [[size // (PATCH_SIZE * 2**stage) for size in self.img_size] for stage in range(stages)]
        self.windows = [tuple(min(size, n) for n in grid) for size, grid in zip(sizes, grids)]
        self.num_features = embed_dim * 2 ** (stages - 1)
        self.decoder_features = self.num_features // 2
        positions = _sines(grids[0], embed_dim)  # also says where embed_dim is none
        rates = _rates(depths, drop_path_rate)
        widths = [embed_dim * 2**stage for stage in range(stages)]
        settings = list(zip(widths, depths, num_heads, self.windows, rates))
        self.encoder = _Encoder(in_channels, torch.zeros_like(positions) if released else positions, settings)
        self.decoder = _Decoder(settings[-2::-1])
        self.final = Conv[Conv.CONVTRANS, spatial_dims](embed_dim, out_channels, PATCH_SIZE, PATCH_SIZE)
        if released:
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.relative_position_index = released_index(module.window_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restore or segment images.

        Args:
            x: `(N, in_channels, *spatial)`, a multiple of `cell_size` along every axis, and not
                smaller than a window.

        Returns:
            `(N, out_channels, *spatial)`.

        Raises:
            ValueError: if the image is of no such size.
        """
        maps = self.encode(x)
        return self.restore(maps, self.first_decoder(maps))

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Every stage's normalised map of images `x` as in `forward`, from fine to coarse.

        Returns:
            Maps `(N, embed_dim * 2**k, *spatial / 2**(k + 1))`; the last has `num_features` channels.

        Raises:
            ValueError: as in `forward`.
        """
        self._check_cells(x.shape[2:])
        for stage, window in enumerate(self.windows):
            smallest = [PATCH_SIZE * 2**stage * size for size in window]
            if any(size < least for size, least in zip(x.shape[2:], smallest)):
                raise ValueError(
                    f"images of {tuple(x.shape[2:])} voxels are smaller than a window of stage {stage}, {smallest} "
                    f"voxels: build HierarchicalTransformer with img_size {list(x.shape[2:])}, not {self.img_size}"
                )
        return self.encoder(x)

    def first_decoder(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """The decoder's first stage `(N, decoder_features, *spatial / (cell_size / 2))` of what `encode` gives."""
        return self.decoder.layers[0](maps[-1], maps[-2])

    def restore(self, maps: Sequence[torch.Tensor], first: torch.Tensor) -> torch.Tensor:
        """The image `(N, out_channels, *spatial)` of what `encode` and `first_decoder` give."""
        return self.final(self.decoder(first, maps))

    def _check_cells(self, spatial: Sequence[int]) -> None:
        """Refuse images whose grids cannot be halved and doubled again."""
        if any(size % self.cell_size or size < 1 for size in spatial):
            raise ValueError(
                f"HierarchicalTransformer has cells of {self.cell_size} voxels, which images of {tuple(spatial)} "
                "voxels do not consist of: crop or pad them to a multiple"
            )


def released_index(window: Sequence[int]) -> torch.Tensor:
    """Where the authors' network finds the bias of each pair of a window's tokens.

    Args:
        window: tokens along the three axes, equal.

    Returns:
        `(T, T)` int64, T the tokens of a window: rows of a table of `(2w - 1)^3` biases, those of `3w - 1`, `2w - 1`
        and 1 for a step along the first, second and third axis.

    Raises:
        ValueError: if the window is no cube.
    """
    size = window[0]
    if tuple(window) != (size,) * 3:
        raise ValueError(
            f"released is for windows that are cubes, not {tuple(window)}: leave it out, or img_size cubic"
        )
    places = torch.stack(torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij")).flatten(1)  # (3, T)
    offsets = places[:, :, None] - places[:, None] + size - 1
    return offsets[0] * (3 * size - 1) + offsets[1] * (2 * size - 1) + offsets[2]


Settings = tuple[int, int, int, tuple[int, ...], list[float]]  # of a stage: features, depth, heads, window, drop paths


class _Encoder(nn.Module):
    """From images to the maps of all stages."""

    def __init__(self, in_channels: int, positions: torch.Tensor, settings: Sequence[Settings]) -> None:
        super().__init__()
        spatial_dims = positions.ndim - 2
        widths = [width for width, *_ in settings]
        self.patch_embed = _PatchEmbedding(spatial_dims, in_channels, widths[0])
        self.position_embedding: torch.Tensor
        self.register_buffer("position_embedding", positions)
        self.layers = nn.ModuleList(
            [
                BasicLayer(dim=width, depth=depth, num_heads=heads, window_size=window, drop_path=rates, qkv_bias=True)
                for width, depth, heads, window, rates in settings
            ]
        )
        self.downsamples = nn.ModuleList([_Downsample(spatial_dims, width) for width in widths[:-1]])
        self.norms = nn.ModuleList([ChannelNorm(width) for width in widths])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Normalised maps from fine to coarse; what is halved further is not normalised."""
        x = self.patch_embed(x)
        positions = self.position_embedding
        if positions.shape[2:] != x.shape[2:]:
            mode = "trilinear" if x.ndim == 5 else "bilinear"
            positions = F.interpolate(positions, x.shape[2:], mode=mode)
        x = x + positions
        maps = []
        for stage, (layer, norm) in enumerate(zip(self.layers, self.norms)):
            x = layer(self.downsamples[stage - 1](x) if stage else x)
            maps.append(norm(x))
        return maps


class _Decoder(nn.Module):
    """Stages from coarse to fine; the first is called by itself."""

    def __init__(self, settings: Sequence[Settings]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderStage(*setting) for setting in settings])

    def forward(self, first: torch.Tensor, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """The finest map `(N, embed_dim, *g)` from the first stage's and the encoder's maps, from fine to coarse."""
        for layer, skip in zip(self.layers[1:], maps[-3::-1]):
            first = layer(first, skip)
        return first


class _PatchEmbedding(nn.Module):
    """Two pairs of convolutions, the very first of which halves the grid."""

    def __init__(self, spatial_dims: int, in_channels: int, features: int) -> None:
        super().__init__()
        self.proj1 = _Projection(spatial_dims, in_channels, features // 2, PATCH_SIZE, last=False)
        self.proj2 = _Projection(spatial_dims, features // 2, features, 1, last=True)
        self.norm = ChannelNorm(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C, *spatial)` to `(N, features, *spatial / 2)`."""
        return self.norm(self.proj2(self.proj1(x)))


class _Projection(nn.Module):
    """Convolution, GELU, norm, and once more; the last pair's second convolution stands alone."""

    def __init__(self, spatial_dims: int, in_channels: int, features: int, stride: int, last: bool) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.conv1 = convolution(in_channels, features, 3, stride, padding=1)
        self.norm1 = ChannelNorm(features)
        self.conv2 = convolution(features, features, 3, 1, padding=1)
        self.norm2 = None if last else ChannelNorm(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.norm1(F.gelu(self.conv1(x))))
        return x if self.norm2 is None else self.norm2(F.gelu(x))


class _Downsample(nn.Module):
    """GELU, norm, and a convolution that halves the grid and doubles the features."""

    def __init__(self, spatial_dims: int, features: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(features)
        self.reduction = Conv[Conv.CONV, spatial_dims](features, 2 * features, 3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduction(self.norm(F.gelu(x)))


def _rates(depths: Sequence[int], last: float) -> list[list[float]]:
    """Stochastic depth of every stage's blocks, from none to `last`."""
    rates = torch.linspace(0, last, sum(depths), device="cpu").tolist()
    return [rates[sum(depths[:stage]) : sum(depths[: stage + 1])] for stage in range(len(depths))]


def _sines(grid: Sequence[int], features: int) -> torch.Tensor:
    """MONAI's sine position embedding as a map `(1, features, *grid)`."""
    if features % (2 * len(grid)):
        raise ValueError(
            f"embed_dim {features} must be a multiple of {2 * len(grid)}, for sines along {len(grid)} axes"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch.meshgrid, about its order
        tokens = build_sincos_position_embedding(list(grid), features, len(grid))
    return tokens.detach().mT.reshape(1, features, *grid)
