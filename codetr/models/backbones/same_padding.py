"""TensorFlow's padding of strided convolutions, for images of any size in torch.export."""

from __future__ import annotations

from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from codetr.models.backbones.window_attention import round_up


class SameConv2d(Conv2dSame):
    """Equal to timm's ``Conv2dSame``: ceil(side / stride) outputs per side, of two unequal borders
    the larger one at the bottom and right.

    timm's quotients and maxima nest from stage to stage, and torch.export cannot simplify them
    where sizes are free. It can simplify the number of outputs times the stride.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        borders: list[int] = []
        for axis in (1, 0):  # as F.pad counts them: the last one first
            side, stride = maps.shape[2 + axis], self.stride[axis]
            extent = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            missing = round_up(side, stride) - stride + extent - side
            if extent < stride:  # otherwise it is never negative
                missing = max(missing, 0)
            borders += [missing // 2, missing - missing // 2]
        padded = F.pad(maps, borders)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def simplify_same_padding(body: nn.Module) -> None:
    """Let every ``Conv2dSame`` in ``body`` pad as ``SameConv2d``; parameters and hooks stay."""
    for module in body.modules():
        if type(module) is Conv2dSame:
            module.__class__ = SameConv2d
