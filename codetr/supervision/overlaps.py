"""The generalised IoU of losses and matchers, in the variants of the official codes.

Unless boxes are tiny, the variants agree to about 1e-5; each published result used one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from codetr.boxes import area_xyxy, paired_giou


class Overlap(Protocol):
    """A generalised IoU of predicted and wanted boxes."""

    def __call__(self, found: Tensor, wanted: Tensor, size: Tensor) -> Tensor:
        """(...) of ``found`` and ``wanted`` (..., 4) xyxy in [0, 1], and ``size`` (..., 4) of the
        image, (width, height, width, height) in pixels; all broadcast.
        """
        ...


@dataclass(frozen=True)
class PixelGiou:
    """For boxes in pixels, with denominators of at least 1e-6 (mmdet). In practice denominators are
    so large that this equals the GIoU without epsilon (Conditional DETR, Deformable DETR).
    """

    def __call__(self, found: Tensor, wanted: Tensor, size: Tensor) -> Tensor:
        """See ``Overlap``."""
        return paired_giou(found * size, wanted * size)


@dataclass(frozen=True)
class RelativeGiou:
    """For boxes relative to the image, with ``eps`` added to both denominators (DAB-DETR, DN-DETR,
    DINO; official ``generalized_box_iou``).
    """

    eps: float = 1e-6

    def __call__(self, found: Tensor, wanted: Tensor, size: Tensor) -> Tensor:
        """See ``Overlap``; ``size`` is not used."""
        low = found[..., :2].maximum(wanted[..., :2])
        high = found[..., 2:].minimum(wanted[..., 2:])
        shared = area_xyxy(torch.cat([low, high.maximum(low)], dim=-1))
        union = area_xyxy(found) + area_xyxy(wanted) - shared
        outer_low = found[..., :2].minimum(wanted[..., :2])
        outer_high = found[..., 2:].maximum(wanted[..., 2:])
        hull = area_xyxy(torch.cat([outer_low, outer_high], dim=-1))
        return shared / (union + self.eps) - (hull - union) / (hull + self.eps)


PIXELS = PixelGiou()
