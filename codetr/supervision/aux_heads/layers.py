"""Convolutional parts of auxiliary heads, and Co-DETR's multi-scale adapter
(arXiv 2211.12860, section 3.2), from an encoder's maps to the inputs of the heads.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from codetr.boxes import at_least_float32
from codetr.structures import Pyramid

GROUPS = 32


class ConvBlock(nn.Module):
    """3x3 convolution, group norm (or a bias where ``normalised`` is false), ReLU."""

    def __init__(self, channels: int, *, normalised: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=not normalised)
        self.norm = nn.GroupNorm(GROUPS, channels) if normalised else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.norm(self.conv(features)).relu()


def conv_tower(channels: int, depth: int, *, normalised: bool = True) -> nn.Sequential:
    """``depth`` blocks (0: the features as they are), shared by all levels."""
    return nn.Sequential(*(ConvBlock(channels, normalised=normalised) for _ in range(depth)))


def predictor(channels: int, outputs: int) -> nn.Conv2d:
    """The last 3x3 convolution of a branch."""
    return nn.Conv2d(channels, outputs, 3, padding=1)


def init_convs(head: nn.Module) -> None:
    """Every convolution of ``head``: weights of standard deviation 0.01, biases 0."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def flatten_level(prediction: Tensor, size: int) -> Tensor:
    """(B, anchors * size, H, W) to (B, H * W * anchors, size), in the order of ``Anchors``; at
    least float32.
    """
    return at_least_float32(prediction.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, size)))


class CoarserLevel(nn.Sequential):
    """For encoders with several maps: one more, of half the resolution of the coarsest."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__(*_conv_norm(dim, stride=2))

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """Maps (B, C, H_l, W_l), one more than before."""
        coarse = super().forward(pyramid.maps[-1])
        strides = (*pyramid.strides, pyramid.strides[-1] * 2)
        return replace(pyramid, maps=(*pyramid.maps, coarse), strides=strides)


class SingleScaleAdapter(nn.Module):
    """For encoders with one map, ``finer`` levels above it and ``coarser`` ones below, each made
    from its neighbour: by bilinear interpolation and a 3x3 convolution, and by a 3x3 convolution of
    stride 2, with group norm as in ``CoarserLevel``.
    """

    def __init__(self, dim: int = 256, finer: int = 2, coarser: int = 2) -> None:
        super().__init__()
        self.finer = nn.ModuleList(nn.Sequential(*_conv_norm(dim)) for _ in range(finer))
        self.coarser = nn.ModuleList(nn.Sequential(*_conv_norm(dim, 2)) for _ in range(coarser))

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """One map (B, C, H, W) of an even stride to several, fine to coarse."""
        (own,), (stride,) = pyramid.maps, pyramid.strides
        maps, strides = [own], [stride]
        for layer in self.finer:
            maps.insert(0, layer(_doubled(maps[0])))
            strides.insert(0, strides[0] // 2)
        for layer in self.coarser:
            maps.append(layer(maps[-1]))
            strides.append(strides[-1] * 2)
        return replace(pyramid, maps=tuple(maps), strides=tuple(strides))


def _conv_norm(dim: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(dim, dim, 3, stride, padding=1), nn.GroupNorm(GROUPS, dim)


def _doubled(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W)."""
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
