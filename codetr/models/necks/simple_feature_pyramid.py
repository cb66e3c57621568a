"""A pyramid from the single map of a plain vision transformer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from timm.layers.norm import LayerNorm2d
from torch import nn

from codetr.errors import UserError
from codetr.structures import Pyramid


class SimpleFeaturePyramid(nn.Module):
    """Five maps, each made from the same input map by its own branch (Li et al. 2022, section 3).

    Relative to the input, ``p2`` has four times the resolution, ``p3`` twice, ``p4`` the same,
    ``p5`` half and ``p6`` a quarter. Upsampling is nearest-neighbour, downsampling max pooling;
    convolutions have no bias, a layer norm over channels and, all but the last of a branch, GELU.
    Parameter names and details are those of Co-DETR (mmdet/models/necks/sfp.py).

    ``channels`` and ``strides`` are the backbone's. Raises UserError unless there is one map, whose
    stride and number of channels are multiples of 4.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], dim: int = 256) -> None:
        super().__init__()
        if len(channels) != 1 or channels[0] % 4 or strides[0] % 4:
            raise UserError(
                f"model.neck, a SimpleFeaturePyramid, cannot take maps of channels {channels} and "
                f"strides {strides}: it takes one map, both multiples of 4: give another backbone"
            )
        width, stride = channels[0], strides[0]
        self.strides = (stride // 4, stride // 2, stride, stride * 2, stride * 4)
        half, quarter = width // 2, width // 4
        self.levels = nn.ModuleDict(
            {
                "p2": nn.Sequential(
                    *_upsampled(width, half), *_upsampled(half, quarter), *_lateral(quarter, dim)
                ),
                "p3": nn.Sequential(*_upsampled(width, half), *_lateral(half, dim)),
                "p4": nn.Sequential(*_lateral(width, dim)),
                "p5": nn.Sequential(_halved(), *_lateral(width, dim)),
                "p6": nn.Sequential(
                    _halved(), *_conv(width, width, 3, 2), nn.GELU(), *_lateral(width, dim)
                ),
            }
        )

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """One map (B, C, H, W) to five maps (B, dim, H_l, W_l), finest first."""
        (features,) = pyramid.maps
        maps = tuple(branch(features) for branch in self.levels.values())
        return replace(pyramid, maps=maps, strides=self.strides)


def _conv(channels: int, dim: int, kernel: int, stride: int = 1) -> Iterator[nn.Module]:
    conv = nn.Conv2d(channels, dim, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    yield conv
    yield LayerNorm2d(dim, eps=1e-6)


def _upsampled(channels: int, dim: int) -> Iterator[nn.Module]:
    """To twice the resolution."""
    yield nn.Upsample(scale_factor=2)
    yield from _conv(channels, dim, 3)
    yield nn.GELU()


def _lateral(channels: int, dim: int) -> Iterator[nn.Module]:
    """To the common width, as every branch ends."""
    yield from _conv(channels, dim, 1)
    yield nn.GELU()
    yield from _conv(dim, dim, 3)


def _halved() -> nn.Module:
    return nn.MaxPool2d(3, 2, padding=1)
