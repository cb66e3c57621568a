"""Priors of dense heads: anchor boxes on the cells of a pyramid, and boxes as offsets from them, or
points at the centres of the cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from codetr.structures import Pyramid
from codetr.tensor_struct import TensorStruct

MAX_LOG_SCALE = abs(math.log(16 / 1000))
"""A decoded side is at most 1000 / 16 times the anchor's, and at least 16 / 1000."""


@dataclass(frozen=True, kw_only=True)
class Priors(TensorStruct):
    """The anchors or points that a dense head predicts from, the same for all images of a batch:
    ordered by level, row, column and anchor shape.

    ``boxes`` (A, 4) xyxy px; ``usable`` (B, A) bool; ``level_sizes`` the number of priors of each
    level.
    """

    boxes: Tensor
    usable: Tensor
    level_sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Anchors(Priors):
    """Anchor boxes, usable where their cell lies within the padded size of the image itself.
    ``strides`` (A,) px from cell to cell.
    """

    strides: Tensor


@dataclass(frozen=True, kw_only=True)
class AnchorGrid:
    """Shapes of the anchors of one cell: every ratio h/w with every scale, ratios outermost.

    A square anchor's side is scale * stride. Centres are (column * stride, row * stride), without
    a half-cell shift, as in mmdet.
    """

    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (1.0,)

    @property
    def per_cell(self) -> int:
        """Number of anchors of a cell."""
        return len(self.scales) * len(self.ratios)

    def __call__(self, pyramid: Pyramid, padded_sizes: Tensor) -> Anchors:
        """Anchors for ``pyramid``; ``padded_sizes`` (B, 2) are the images' (height, width) px."""
        device = padded_sizes.device
        unit = _unit(tuple(self.scales), tuple(self.ratios), _precision(pyramid), device)
        boxes, steps, corners = [], [], []
        for (height, width), stride in zip(pyramid.shapes, pyramid.strides, strict=True):
            cells = _cells(height, width, device)
            boxes.append(((cells.repeat(1, 2)[:, None] + unit) * stride).flatten(0, 1))
            steps.append(torch.full_like(boxes[-1][:, 0], stride))
            corners.append((cells * stride).repeat_interleave(self.per_cell, dim=0))
        # A cell is usable if it begins within the image.
        usable = (torch.cat(corners) < padded_sizes.flip(1)[:, None]).all(dim=2)
        return Anchors(
            boxes=torch.cat(boxes),
            strides=torch.cat(steps),
            usable=usable,
            level_sizes=tuple(len(level) for level in boxes),
        )


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # training cannot use a cached inference tensor
def _unit(
    scales: tuple[float, ...], ratios: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(S, 4) xyxy in strides: the anchors about the origin.

    Cached, since a copy from the host would synchronise with the device in every step. Everything
    else depends on the image sizes and is computed on the device.
    """
    halves = [(s / r**0.5 / 2, s * r**0.5 / 2) for r in ratios for s in scales]
    return torch.tensor([(-w, -h, w, h) for w, h in halves], dtype=dtype, device=device)


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


def _centre_size(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


@dataclass(frozen=True, kw_only=True)
class Points(Priors):
    """The centres of all cells, all of them usable, those in padding too: ``centres`` (A, 2) x, y
    in px; ``boxes`` are squares about them; ``reach`` (A, 2) px is the regression range of the
    point's level, the smallest and largest distance to the farthest side of a box.
    """

    centres: Tensor
    reach: Tensor


@dataclass(frozen=True, kw_only=True)
class PointGrid:
    """Points at ((column + 1/2) * stride, (row + 1/2) * stride), as in FCOS (Tian et al. 2019).

    The regression range of a level goes from ``reach`` times the stride of the previous level to
    ``reach`` times that of its own; the first level has no lower bound, the last no upper one (64,
    128, 256, 512 px for strides 8 to 128, as published). The squares have the side ``finest_side``
    on the finest level and twice that on each further one (the authors of Co-DETR in
    Sense-X/Co-DETR, issue 35).
    """

    reach: float = 8.0
    finest_side: float = 64.0

    def __call__(self, pyramid: Pyramid, padded_sizes: Tensor) -> Points:
        """Points for ``pyramid``; of ``padded_sizes`` (B, 2) only the number of images matters."""
        dtype, device = _precision(pyramid), pyramid.maps[0].device
        bounds = [0.0, *(self.reach * s for s in pyramid.strides[:-1]), torch.inf]
        centres, boxes, reach = [], [], []
        for level, ((height, width), stride) in enumerate(
            zip(pyramid.shapes, pyramid.strides, strict=True)
        ):
            middle = (_cells(height, width, device).to(dtype) + 0.5) * stride
            half = self.finest_side * 2**level / 2
            centres.append(middle)
            boxes.append(torch.cat([middle - half, middle + half], dim=1))
            limits = [torch.full_like(middle[:, :1], b) for b in bounds[level : level + 2]]
            reach.append(torch.cat(limits, dim=1))
        all_boxes = torch.cat(boxes)
        return Points(
            centres=torch.cat(centres),
            boxes=all_boxes,
            usable=all_boxes.new_ones(len(padded_sizes), len(all_boxes), dtype=torch.bool),
            reach=torch.cat(reach),
            level_sizes=tuple(len(level) for level in centres),
        )


def _precision(pyramid: Pyramid) -> torch.dtype:
    return torch.promote_types(pyramid.maps[0].dtype, torch.float32)


def _cells(height: int, width: int, device: torch.device) -> Tensor:
    """(H * W, 2) column and row of every cell, row by row."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([x, y], dim=-1).flatten(0, 1)
