"""Instance masks as small probability maps within boxes, and pasting them into an image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr.boxes import at_least_float32
from codetr.tensor_struct import TensorStruct

THRESHOLD = 0.5
"""A pixel with at least this probability belongs to the object."""


@dataclass(frozen=True, kw_only=True)
class Masks(TensorStruct):
    """The masks of n detections, in the same order: ``probabilities`` (n, S, S) on a grid of cells
    over the detection's box; ``scores`` (n,) of the masks, which may differ from those of the
    boxes. ``paste`` turns them into bitmaps of an image.
    """

    probabilities: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return self.scores.shape[0]

    def mirrored(self) -> Masks:
        """The masks of the image flipped left to right."""
        return replace(self, probabilities=self.probabilities.flip(-1))


def joined_masks(parts: Sequence[Masks | None]) -> Masks | None:
    """The masks concatenated; None if any part is None or there are none."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts) or not present:
        return None
    return Masks(
        probabilities=torch.cat([part.probabilities for part in present]),
        scores=torch.cat([part.scores for part in present]),
    )


def paste(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, H, W) bool: the masks ``probabilities`` (n, S, S) of ``boxes`` (n, 4) xyxy px in an image
    of ``size`` (height, width).

    A pixel's probability is interpolated bilinearly at its centre from the S x S cells, with zeros
    outside the box (Mask R-CNN, as in Detectron2 and mmdet). Only pixels around a box are computed,
    since no other can reach ``THRESHOLD``.
    """
    height, width = size
    bitmaps = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    for bitmap, (found, window) in zip(
        bitmaps, cropped_masks(probabilities, boxes, size), strict=True
    ):
        top, bottom, left, right = window
        bitmap[top:bottom, left:right] = found
    return bitmaps


def cropped_masks(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int]
) -> Iterator[tuple[Tensor, tuple[int, int, int, int]]]:
    """The masks of ``paste``, each as (rows, columns) bool cropped to the part of the image that
    its box can reach, and that window (top, bottom, left, right).
    """
    for cells, box, window in zip(probabilities, boxes, _windows(boxes, size), strict=True):
        yield probability(cells, box, window) >= THRESHOLD, window


def probability(cells: Tensor, box: Tensor, window: tuple[int, int, int, int]) -> Tensor:
    """Probabilities (rows, columns) of one mask, ``cells`` (S, S) in ``box`` (4,) xyxy px, at the
    pixels of ``window`` (top, bottom, left, right).
    """
    top, bottom, left, right = window
    cells, box = at_least_float32(cells), at_least_float32(box)
    x0, y0, x1, y1 = box.unbind()
    x = (torch.arange(left, right, device=box.device).to(box) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(top, bottom, device=box.device).to(box) + 0.5 - y0) / (y1 - y0) * 2 - 1
    # a box without area is sampled at its centre, as in mmdet
    x, y = (axis.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for axis in (x, y))
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    return F.grid_sample(cells[None, None], grid[None].to(cells), align_corners=False)[0, 0]


def _windows(boxes: Tensor, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """The window (top, bottom, left, right) of an image of ``size`` that the mask of each of
    ``boxes`` (n, 4) xyxy px can cover, empty for a box that is not finite.
    """
    height, width = size
    return [
        (*_reach(y0, y1, height), *_reach(x0, x1, width))
        if all(map(math.isfinite, (x0, y0, x1, y1)))
        else (0, 0, 0, 0)
        for x0, y0, x1, y1 in boxes.tolist()
    ]


def _reach(low: float, high: float, side: int) -> tuple[int, int]:
    first = min(max(math.floor(low) - 1, 0), side)
    return first, max(min(math.ceil(high) + 1, side), first)
