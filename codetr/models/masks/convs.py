"""Convolutions of mask heads, with the initial values of the official code."""

from __future__ import annotations

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

NORM_EPS = 1e-5


class NormedConv(nn.Module):
    """3x3 convolution without bias, layer norm over the channels of each cell, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = LayerNorm2d(outputs, eps=NORM_EPS)
        init_fan_out(self.conv)

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        normed: Tensor = self.norm(self.conv(features))
        return normed.relu()


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution with bias."""
    return init_fan_out(nn.Conv2d(inputs, outputs, 1))


def dilated(channels: int, dilation: int) -> nn.Conv2d:
    """A 3x3 convolution with bias and the given ``dilation``."""
    conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
    return init_fan_out(conv)


def init_fan_out(conv: nn.Conv2d) -> nn.Conv2d:
    """Weights by He et al. 2015 with the fan out, bias 0."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
