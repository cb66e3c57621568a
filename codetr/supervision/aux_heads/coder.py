"""Boxes as offsets from anchors, and as distances from points to their four sides (Tian et al.
2019, FCOS, eq. 1) or distributions of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_SCALE = abs(math.log(16 / 1000))
"""A decoded side is at most 1000 / 16 times the anchor's, and at least 16 / 1000."""

MARGIN = 0.1
"""Targets of a distribution stay this far below its last bin (mmdet)."""


@dataclass(frozen=True, kw_only=True)
class DeltaCoder:
    """Offsets (dx, dy, dw, dh) of a box from an anchor (Girshick et al. 2014, appendix C).

    The centre moves by dx, dy anchor sizes, the sides grow by exp(dw), exp(dh); the network
    predicts each divided by its ``stds``.
    """

    stds: tuple[float, float, float, float]

    def encode(self, anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
        """(..., 4) offsets of boxes from anchors (..., 4), one unit; sizes must be above 0."""
        ax, ay, aw, ah = _centre_size(anchors_xyxy)
        bx, by, bw, bh = _centre_size(boxes_xyxy)
        offsets = ((bx - ax) / aw, (by - ay) / ah, (bw / aw).log(), (bh / ah).log())
        return torch.stack([o / s for o, s in zip(offsets, self.stds, strict=True)], dim=-1)

    def decode(self, anchors_xyxy: Tensor, deltas: Tensor) -> Tensor:
        """(..., 4) xyxy boxes in the unit of ``anchors_xyxy``, not clipped; shapes broadcast."""
        ax, ay, aw, ah = _centre_size(anchors_xyxy)
        dx, dy, dw, dh = (d * s for d, s in zip(deltas.unbind(dim=-1), self.stds, strict=True))
        x, y = ax + dx * aw, ay + dy * ah
        half_w = aw * dw.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() / 2
        half_h = ah * dh.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() / 2
        return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


@dataclass(frozen=True, kw_only=True)
class DistributionCoder:
    """Distances of points to the four sides of boxes, each a distribution over the whole numbers 0
    to ``bins`` (Li et al. 2020, section 3.2). The regression (..., 4 * (bins + 1)) is their logits,
    side after side.
    """

    bins: int

    def logits(self, regression: Tensor) -> Tensor:
        """(..., 4, bins + 1) of every side."""
        return regression.unflatten(-1, (4, self.bins + 1))

    def expected(self, regression: Tensor) -> Tensor:
        """(..., 4) expected distances."""
        bins = torch.arange(self.bins + 1, device=regression.device, dtype=regression.dtype)
        return self.logits(regression).softmax(dim=-1) @ bins

    def clamp(self, distances: Tensor) -> Tensor:
        """``distances`` within the range of a distribution, so that each has a bin above it."""
        return distances.clamp(min=0, max=self.bins - MARGIN)


def centres_xyxy(boxes: Tensor) -> Tensor:
    """(..., 2) x and y of the centres of corner boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def encode_distances(points: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) distances left, top, right, bottom of ``points`` (..., 2) to the sides of their
    boxes, same unit; negative where the point is outside. Shapes broadcast.
    """
    return torch.cat([points - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points], dim=-1)


def decode_distances(points: Tensor, distances: Tensor) -> Tensor:
    """(..., 4) corner boxes, the inverse of ``encode_distances``."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def centerness(distances: Tensor) -> Tensor:
    """(...,) sqrt of the ratios of the near to the far side per axis (FCOS, eq. 3): 1 in the
    middle of a box, 0 on a side. ``distances`` (..., 4) of points inside.
    """
    low, high = distances[..., :2], distances[..., 2:]
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(dim=-1).sqrt()


def _centre_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
