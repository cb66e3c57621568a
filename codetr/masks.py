"""Instance masks: small maps of probabilities within boxes, and their pasting into an image."""

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
"""A pixel of at least this probability is on the object."""


@dataclass(frozen=True, kw_only=True)
class Masks(TensorStruct):
    """The masks of n detections, in their order: ``probabilities`` (n, S, S) of the cells that the
    detection's box is cut into; ``scores`` (n,) of the masks, which may differ from the boxes'.

    They are small whatever the image: ``paste`` makes bitmaps of them.
    """

    probabilities: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return self.scores.shape[0]

    def mirrored(self) -> Masks:
        """Those of the mirror image, with left and right exchanged."""
        return replace(self, probabilities=self.probabilities.flip(-1))


def joined_masks(parts: Sequence[Masks | None]) -> Masks | None:
    """One after the other; None where one of them is."""
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

    A pixel's probability is read bilinearly at its centre, straight from the S x S cells, with
    zeros outside the box (Mask R-CNN, as in Detectron2 and mmdet). The work grows with the boxes,
    not with the image: nothing outside a box reaches ``THRESHOLD``.
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
    """(rows, columns) of the pixels of ``window`` (top, bottom, left, right) of one mask: ``cells``
    (S, S) in ``box`` (4,) xyxy px.
    """
    top, bottom, left, right = window
    cells, box = at_least_float32(cells), at_least_float32(box)
    x0, y0, x1, y1 = box.unbind()
    x = (torch.arange(left, right, device=box.device).to(box) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(top, bottom, device=box.device).to(box) + 0.5 - y0) / (y1 - y0) * 2 - 1
    # a box without area is read at its centre, as in mmdet
    x, y = (axis.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for axis in (x, y))
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    return F.grid_sample(cells[None, None], grid[None].to(cells), align_corners=False)[0, 0]


def _windows(boxes: Tensor, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left and right of the pixels of an image of ``size`` that each of ``boxes``
    (n, 4) xyxy px can reach: none where a box is not finite.
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
