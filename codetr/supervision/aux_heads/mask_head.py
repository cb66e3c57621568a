"""The part of the second stage that turns region features into masks (He et al. 2017, Mask R-CNN).

Official parameter names (mmdet ``FCNMaskHead``) and ours: ``convs.i.conv`` is ``convs.i.conv``,
``upsample`` the same, ``conv_logits`` is ``classify``.
"""

from __future__ import annotations

from torch import Tensor, nn

from codetr.models.layers.class_maps import maps_of_class
from codetr.supervision.aux_heads.layers import conv_tower


class FcnMaskHead(nn.Module):
    """``num_convs`` 3x3 convolutions, a transposed one to twice the resolution, and one map per
    class: masks of ``2 * roi_size`` cells per side. ``weight`` is that of its loss.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        num_convs: int = 4,
        roi_size: int = 14,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.roi_size, self.weight = roi_size, weight
        self.convs = conv_tower(channels, num_convs, normalised=False)
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def mask_size(self) -> int:
        """Cells per side of a mask."""
        return 2 * self.roi_size

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits (R, mask_size, mask_size) of class ``labels[r]`` in region r, from its features
        (R, C, roi_size, roi_size).
        """
        return maps_of_class(self.classify, self.upsample(self.convs(features)).relu(), labels)
