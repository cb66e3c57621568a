"""From an encoder's maps to the inputs of auxiliary heads: Co-DETR's multi-scale adapter
(arXiv 2211.12860, section 3.2).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from codetr.structures import Pyramid


class CoarserLevel(nn.Sequential):
    """For encoders with several maps: one more, of half the resolution of the coarsest."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__(*_conv(dim, stride=2))

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
        self.finer = nn.ModuleList(nn.Sequential(*_conv(dim)) for _ in range(finer))
        self.coarser = nn.ModuleList(nn.Sequential(*_conv(dim, 2)) for _ in range(coarser))

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


def _conv(dim: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(dim, dim, 3, stride, padding=1), nn.GroupNorm(32, dim)


def _doubled(features: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W)."""
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
