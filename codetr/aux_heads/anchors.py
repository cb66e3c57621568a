"""Anchor boxes on the cells of a pyramid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from codetr.structures import Pyramid, TensorStruct


@dataclass(frozen=True, kw_only=True)
class Anchors(TensorStruct):
    """All anchors of a batch: level by level, row by row, column by column, shape by shape.

    ``boxes`` (A, 4) xyxy px; ``usable`` (B, A) bool, False for cells outside the image's own
    padded size; ``level_sizes`` how many of the A belong to each level.
    """

    boxes: Tensor
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
        dtype = torch.promote_types(pyramid.maps[0].dtype, torch.float32)
        shapes = _unit_anchors(tuple(self.scales), tuple(self.ratios), dtype, padded_sizes.device)
        boxes, usable = [], []
        for (height, width), stride in zip(pyramid.shapes, pyramid.strides, strict=True):
            rows = torch.arange(height, device=padded_sizes.device)
            columns = torch.arange(width, device=padded_sizes.device)
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            corner = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            boxes.append(((corner + shapes) * stride).flatten(0, 1))
            last = -(-padded_sizes // stride)
            inside = (rows < last[:, :1])[:, :, None] & (columns < last[:, 1:])[:, None, :]
            usable.append(inside.flatten(1).repeat_interleave(self.per_cell, dim=1))
        return Anchors(
            boxes=torch.cat(boxes),
            usable=torch.cat(usable, dim=1),
            level_sizes=tuple(len(level) for level in boxes),
        )


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached inference tensor would be of no use to training
def _unit_anchors(
    scales: tuple[float, ...], ratios: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(A, 4) anchors of one cell at stride 1 about the origin, xyxy; kept on the device."""
    halves = [(s / r**0.5 / 2, s * r**0.5 / 2) for r in ratios for s in scales]
    return torch.tensor([(-w, -h, w, h) for w, h in halves], dtype=dtype, device=device)
