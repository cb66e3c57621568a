"""The boundary of a mask, where RefineMask learns and predicts at a finer resolution (Zhang et al.
2021, section 3.2).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from codetr.masks import THRESHOLD

_SHARE = 0.1
"""A cell is at the boundary if more than this share of its window is on the other side."""


def boundary(masks: Tensor, width: int) -> Tensor:
    """(R, S, S) bool: the cells of ``masks`` (R, S, S), bool or 0 and 1, whose window of
    ``2 * width + 1`` cells per side contains the other side of the boundary. Outside the region is
    background.
    """
    inside = masks.float()
    window = 2 * width + 1
    share = F.avg_pool2d(inside[:, None], window, stride=1, padding=width).squeeze(1)
    other = share.where(masks == 0, 1 - share)
    return other > _SHARE


def enlarged(values: Tensor, size: int) -> Tensor:
    """(R, size, size) of ``values`` (R, S, S), bilinear with the corners' centres aligned."""
    shape = (size, size)
    return F.interpolate(values[:, None], shape, mode="bilinear", align_corners=True).squeeze(1)


def enlarged_region(region: Tensor, size: int) -> Tensor:
    """(R, size, size) bool of ``region`` (R, S, S) bool."""
    return enlarged(region.float(), size) >= THRESHOLD
