"""Anchor boxes on the cells of a pyramid, and points in their middle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from codetr.structures import Pyramid
from codetr.tensor_struct import TensorStruct


@dataclass(frozen=True, kw_only=True)
class Places(TensorStruct):
    """Where a dense head predicts, in all images of a batch: level by level, row by row, column by
    column, shape by shape.

    ``boxes`` (A, 4) xyxy px; ``usable`` (B, A) bool; ``level_sizes`` how many of the A belong to
    each level.
    """

    boxes: Tensor
    usable: Tensor
    level_sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Anchors(Places):
    """Anchor boxes. Not usable are those of cells outside the image's own padded size. ``strides``
    (A,) px from cell to cell.
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
@torch.inference_mode(False)  # a cached inference tensor would be of no use to training
def _unit(
    scales: tuple[float, ...], ratios: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(S, 4) xyxy in strides: the anchors about the origin.

    Kept, since numbers that come from the host would be waited for in every step; all else is
    made on the device, where image sizes vary from step to step.
    """
    halves = [(s / r**0.5 / 2, s * r**0.5 / 2) for r in ratios for s in scales]
    return torch.tensor([(-w, -h, w, h) for w, h in halves], dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class Points(Places):
    """The middles of all cells, usable in images' padding, too: ``centres`` (A, 2) x, y in px, with
    a square about each for ``boxes``; ``reach`` (A, 2) px, the smallest and largest distance to
    the farthest side of a box that the point's level is meant for.
    """

    centres: Tensor
    reach: Tensor


@dataclass(frozen=True, kw_only=True)
class PointGrid:
    """Points at ((column + 1/2) * stride, (row + 1/2) * stride), as in FCOS (Tian et al. 2019).

    A level is meant for boxes whose farthest side is between ``reach`` times the stride of the
    level before and ``reach`` times its own; the first level has no lower, the last no upper
    bound (64, 128, 256, 512 px for strides 8 to 128, as published). The squares have the side
    ``finest_side`` on the finest level and twice that on each further one (the authors of Co-DETR
    in Sense-X/Co-DETR, issue 35).
    """

    reach: float = 8.0
    finest_side: float = 64.0

    def __call__(self, pyramid: Pyramid, padded_sizes: Tensor) -> Points:
        """Points for ``pyramid``; ``padded_sizes`` (B, 2) say how many images there are."""
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
