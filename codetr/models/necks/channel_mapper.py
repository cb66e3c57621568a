"""The neck of most DETRs: one width for all levels, and coarser levels appended."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from codetr.structures import Pyramid


class ConvNorm(nn.Sequential):
    """Convolution and group norm: (B, C_in, H, W) to (B, dim, H', W')."""

    def __init__(
        self, channels: int, dim: int, kernel: int, stride: int = 1, bias: bool = False
    ) -> None:
        conv = nn.Conv2d(channels, dim, kernel, stride, padding=kernel // 2, bias=bias)
        nn.init.xavier_uniform_(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        super().__init__(conv, nn.GroupNorm(32, dim))


class ChannelMapper(nn.Module):
    """1x1 convolution and group norm on each map; each extra level is a 3x3 convolution of stride
    2, the first on the last *raw* map (mmdet ``ChannelMapper``). ``bias`` gives the convolutions
    one (DINO).
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        dim: int = 256,
        extra: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if dim % 32:
            raise ValueError(f"model.dim={dim} must be a multiple of 32, for the group norm")
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(extra)))
        self.maps = nn.ModuleList(ConvNorm(c, dim, 1, bias=bias) for c in channels)
        widths = [channels[-1]] + [dim] * extra
        self.extra = nn.ModuleList(ConvNorm(widths[i], dim, 3, 2, bias) for i in range(extra))

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """Backbone maps (B, C_l, H_l, W_l) to maps (B, dim, H_l, W_l), extra levels last."""
        maps = [layer(m) for layer, m in zip(self.maps, pyramid.maps, strict=True)]
        last = pyramid.maps[-1]
        for layer in self.extra:
            last = layer(last)
            maps.append(last)
        return replace(pyramid, maps=tuple(maps), strides=self.strides)
