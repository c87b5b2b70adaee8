"""Any MONAI network as an encoder: a crop goes in, one vector comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import SegResNet, UNet, ViT
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.networks.utils import replace_modules
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["PooledEncoder", "SegResNetEncoder", "UNetEncoder", "call_encoder", "with_group_norm"]


class PooledEncoder(nn.Module):
    """Give one vector per crop from a MONAI network that returns feature maps or tokens.

    What the backbone returns decides the pooling: stages (list or tuple of maps) -> the last one; a map `(N, C,
    *spatial)` -> mean over space; `(tokens, hidden states)` or tokens `(N, T, C)`, as from
    `monai.networks.nets.ViT` -> mean token; a vector `(N, C)` is left alone. The weights stay under
    `backbone.` with the backbone's own names, so that they go to SwinUNETR (`swinViT`), UNETR (`vit`),
    SegResNetDS (`encoder`), SegResNet or UNet as they are.

    Tested with MONAI's `SwinTransformer`, `ViT`, `resnet18` (`feed_forward: false`), `SegResEncoder`, and
    `SegResNetEncoder` and `UNetEncoder` of this module. Networks that end in a vector by themselves need no wrapper:
    DenseNet, SENet, EfficientNetBN, and ResNet where no projection is wanted; for 2D torchvision networks MONAI has
    `TorchVisionFCModel`. MONAI's pyramid encoders (`ResNetEncoder`, `EfficientNetEncoder` of FlexibleUNet) return
    stages and fit as backbone.

    Args:
        backbone: 2D or 3D network. ViT is built for one crop size; its cross-attention norms, which MONAI creates and
            never uses, are frozen, because distributed training refuses parameters that get no gradient.
        out_channels: length of the vector after a linear projection; None leaves the pooled features as they are.
        feature_channels: length of the pooled features, needed with `out_channels` for backbones other than those
            named above.

    Raises:
        ValueError: if `out_channels` is given and the number of features is neither known nor given.
    """

    def __init__(
        self, backbone: nn.Module, out_channels: int | None = None, feature_channels: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(backbone, ViT):
            freeze_cross_attention(backbone)
        self.projection: nn.Module = nn.Identity()
        if out_channels is not None:
            self.projection = nn.Linear(feature_channels or _feature_channels(backbone), out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed crops.

        Args:
            x: `(N, C, *roi)` crops, 2D or 3D.

        Returns:
            `(N, F)` embeddings, F = `out_channels` where given.

        Raises:
            ValueError: if the crop size or channel count does not suit the backbone, or if the backbone is a whole
                segmentation network, whose output is no embedding.
        """
        if isinstance(self.backbone, ViT):
            _check_patches(self.backbone, x)
        features = _last(call_encoder(self.backbone, x))
        if features.ndim == 3:  # tokens (N, T, C)
            features = features.mean(dim=1)
        elif features.ndim > 3:  # map (N, C, *spatial)
            if features.shape[2:] == x.shape[2:]:
                raise ValueError(
                    f"{type(self.backbone).__name__} returns a map as large as the crop {tuple(x.shape[2:])}, a "
                    "decoder's output: give its encoder (SwinTransformer, ViT, SegResEncoder, SegResNetEncoder, "
                    "UNetEncoder)"
                )
            features = features.flatten(2).mean(dim=2)
        return self.projection(features)  # (N, F)


class SegResNetEncoder(SegResNet):
    """The contracting path of MONAI's SegResNet, with SegResNet's own weight names (`convInit`, `down_layers`).

    It takes SegResNet's arguments; the decoder is left out, because parameters that get no gradient stop distributed
    training.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        del self.up_layers, self.up_samples, self.conv_final

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the deepest feature map, `(N, init_filters * 2**(levels - 1), *roi / 2**(levels - 1))`."""
        return self.encode(x)[0]


class UNetEncoder(UNet):
    """The contracting path of MONAI's UNet, with UNet's own weight names (`model.0`, `model.1.submodule.0`, ...).

    It takes UNet's arguments, `out_channels` being of no use; the decoder is left out, because parameters that get no
    gradient stop distributed training. `forward` gives the deepest feature map, `(N, channels[-1], *)`.
    """

    def __init__(self, **kwargs: Any) -> None:
        # the decoder is built before it is left out, and group normalisation has to divide its channels
        super().__init__(**{**kwargs, "out_channels": kwargs["channels"][0]})

    def _get_connection_block(self, down_path: nn.Module, up_path: nn.Module, subblock: nn.Module) -> nn.Module:
        """One level: the path down and what is below it, without the skip connection and the path up."""
        return nn.Sequential(down_path, _Below(subblock))


class _Below(nn.Module):
    """In place of MONAI's `SkipConnection`, for the same weight names."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The deeper levels' output."""
        return self.submodule(x)


def freeze_cross_attention(vit: ViT) -> None:
    """Freeze what MONAI's ViT creates and never uses: distributed training refuses parameters that get no gradient."""
    for name, parameter in vit.named_parameters():
        if "cross_attn" in name:
            parameter.requires_grad_(False)


def with_group_norm(network: nn.Module, num_groups: int = 8) -> nn.Module:
    """Replace every batch normalisation of a network by group normalisation, keeping weight names and initial scales.

    Needed where a MONAI network does not hand its `norm` argument on: ResNet gives it to the first layer only (MONAI
    1.5 to 1.6.1). DenseNet, SegResNet and SegResEncoder need it not: `norm: [group, {num_groups: 8}]` in the config
    does the same.

    Args:
        network: changed in place.
        num_groups: groups per layer; must divide every layer's channels.

    Returns:
        The same network.

    Raises:
        ValueError: if there is no batch normalisation, or `num_groups` does not divide a layer's channels.
    """
    layers = [(name, layer) for name, layer in network.named_modules() if name and isinstance(layer, _BatchNorm)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no batch normalisation to replace: use the network without with_group_norm"
        )
    for name, layer in layers:
        if layer.num_features % num_groups:
            raise ValueError(
                f"{name} of {type(network).__name__} has {layer.num_features} channels, which num_groups {num_groups} "
                "does not divide: choose another"
            )
        group_norm = nn.GroupNorm(num_groups, layer.num_features, eps=layer.eps, affine=layer.affine)
        if layer.affine:
            group_norm.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        replace_modules(network, name, group_norm)
    return network


def call_encoder(network: nn.Module, x: torch.Tensor) -> Any:
    """Run a network and explain a refusal: torch's own messages name an inner layer, not the crop's shape.

    Args:
        network: takes `(N, C, *roi)`.
        x: `(N, C, *roi)` crops.

    Returns:
        What the network returns.

    Raises:
        ValueError: if the network refuses the crops. Errors with a type of their own (out of memory, device) pass
            unchanged.
    """
    try:
        return network(x)
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{type(network).__name__} cannot take crops of shape {tuple(x.shape[1:])} (channels first): {reason}. "
            "Change the crop size (too small for the network's strides, or no multiple of its patches) or in_channels"
        ) from error


def _last(output: torch.Tensor | Sequence[Any]) -> torch.Tensor:
    """Pick the deepest features: of `(features, list of the layers before)` the first, of stages the last."""
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output[-1], (list, tuple)) else output[-1]


def _check_patches(vit: ViT, x: torch.Tensor) -> None:
    """Refuse crops that ViT was not built for: its position embeddings would broadcast to a single patch in silence."""
    embedding = vit.patch_embedding
    tokens = embedding.position_embeddings.shape[1]
    if x[0].numel() != tokens * embedding.patch_dim:
        raise ValueError(
            f"ViT was built for {tokens} patches of {embedding.patch_dim} values, which crops of shape "
            f"{tuple(x.shape[1:])} (channels first) do not give: set img_size to the crop size, a multiple of "
            "patch_size, and in_channels to the image's channels"
        )


def _feature_channels(backbone: nn.Module) -> int:
    """Length of the pooled features of the MONAI networks that this module is tested with."""
    if isinstance(backbone, SwinTransformer):  # merges patches after every stage, the last one too
        return int(backbone.embed_dim * 2**backbone.num_layers)
    if isinstance(backbone, ViT) and not backbone.classification:
        return int(backbone.norm.normalized_shape[0])
    if isinstance(backbone, ResNet) and backbone.fc is None:
        return int(backbone.in_planes)
    if isinstance(backbone, UNetEncoder):
        return int(backbone.channels[-1])
    if isinstance(backbone, (SegResEncoder, SegResNet)):
        return int(backbone.init_filters * 2 ** (len(backbone.blocks_down) - 1))
    raise ValueError(
        f"the number of features of {type(backbone).__name__} is not known: give feature_channels beside out_channels"
    )
