"""Mask scoring (Huang et al. 2019, Mask Scoring R-CNN): the predicted IoU of a mask, since the
score of its box does not measure how well the mask fits.

Official parameter names (mmdet ``MaskIoUHead``) and ours: ``norm_layer`` is ``norm``,
``fc_mask_iou`` is ``iou``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr.boxes import at_least_float32
from codetr.models.masks.convs import NormedConv


class MaskIouHead(nn.Module):
    """The IoU of a mask with its object, by class, from the region's features and the mask.

    The features have ``roi_size`` cells per side, the mask twice as many; ``hidden`` is the width
    of the hidden layer.
    """

    def __init__(
        self, *, num_classes: int, channels: int, hidden: int = 1024, roi_size: int = 14
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            NormedConv(channels + 1, channels), NormedConv(channels, channels, stride=2)
        )
        self.fcs = nn.ModuleList([nn.Linear(channels * (-(-roi_size // 2)) ** 2, hidden)])
        self.iou = nn.Linear(hidden, num_classes)
        for layer in self.fcs:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.iou.weight, std=0.01)
        nn.init.zeros_(self.iou.bias)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """(R, K) in [0, 1], at least float32, from ``features`` (R, C, S, S) and the mask's logits
        (R, 2 S, 2 S).
        """
        seen = F.max_pool2d(mask.sigmoid()[:, None], 2).to(features)
        hidden = self.convs(torch.cat([features, seen], dim=1)).flatten(1)
        for layer in self.fcs:
            hidden = layer(hidden).relu()
        return at_least_float32(self.iou(hidden)).sigmoid()
