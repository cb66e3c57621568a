"""Anchor boxes on the cells of a pyramid, and points in their middle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from codetr.structures import Pyramid, TensorStruct


@dataclass(frozen=True, kw_only=True)
class Anchors(TensorStruct):
    """All anchors of a batch: level by level, row by row, column by column, shape by shape.

    ``boxes`` (A, 4) xyxy px; ``strides`` (A,) px from cell to cell; ``usable`` (B, A) bool, False
    for cells outside the image's own padded size; ``level_sizes`` how many of the A belong to
    each level.
    """

    boxes: Tensor
    strides: Tensor
    usable: Tensor
    level_sizes: tuple[int, ...]


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
        boxes, strides, corners, sizes = _anchors(
            tuple(self.scales),
            tuple(self.ratios),
            tuple(zip(pyramid.shapes, pyramid.strides, strict=True)),
            _precision(pyramid),
            padded_sizes.device,
        )
        # A cell is usable if it begins within the image.
        usable = (corners < padded_sizes.flip(1)[:, None]).all(dim=2)
        return Anchors(boxes=boxes, strides=strides, usable=usable, level_sizes=sizes)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a cached inference tensor would be of no use to training
def _anchors(
    scales: tuple[float, ...],
    ratios: tuple[float, ...],
    levels: tuple[tuple[tuple[int, int], int], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """For ``levels`` of the given ((height, width), stride): boxes (A, 4) and stride (A,) of all
    anchors, x and y (A, 2) in pixels where their cells begin, and the levels' sizes.

    Kept for the sizes that were seen last: the numbers of a tensor made on the host would be waited
    for in every step.
    """
    halves = [(s / r**0.5 / 2, s * r**0.5 / 2) for r in ratios for s in scales]
    unit = torch.tensor([(-w, -h, w, h) for w, h in halves], dtype=dtype, device=device)
    boxes, steps, corners = [], [], []
    for (height, width), stride in levels:
        cells = _cells(height, width, device)
        boxes.append(((cells.repeat(1, 2)[:, None] + unit) * stride).flatten(0, 1))
        steps.append(torch.full_like(boxes[-1][:, 0], stride))
        corners.append((cells * stride).repeat_interleave(len(halves), dim=0))
    sizes = tuple(len(level) for level in boxes)
    return torch.cat(boxes), torch.cat(steps), torch.cat(corners), sizes


@dataclass(frozen=True, kw_only=True)
class Points(TensorStruct):
    """The middles of all cells, level by level, row by row: ``centres`` (P, 2) x, y in px;
    ``boxes`` (P, 4) xyxy px, a square about each; ``reach`` (P, 2) px, the smallest and largest
    distance to the farthest side of a box that the point's level is meant for; ``level_sizes``
    how many of the P belong to each level.
    """

    centres: Tensor
    boxes: Tensor
    reach: Tensor
    level_sizes: tuple[int, ...]


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

    def __call__(self, pyramid: Pyramid) -> Points:
        """Points for ``pyramid``, in images' padding too."""
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
        return Points(
            centres=torch.cat(centres),
            boxes=torch.cat(boxes),
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
