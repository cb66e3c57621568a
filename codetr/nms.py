"""Non-maximum suppression (NMS) of overlapping boxes, hard and soft.

``Nms`` and ``SoftNms`` suppress within each class; ``ClasswiseNms`` applies either to detections.
``codetr.suppression`` is for many sets of boxes at once.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from codetr.boxes import EPS, at_least_float32
from codetr.errors import UserError
from codetr.structures import Detections

Scored = tuple[Tensor, Tensor, Tensor]
"""Boxes (n, 4) xyxy in any unit, scores (n,) and labels (n,) of an image."""
Floats = NDArray[np.float64]

log = logging.getLogger(__name__)


class Suppress(Protocol):
    """Suppresses overlapping boxes of a class: ``Nms`` or ``SoftNms``."""

    def __call__(self, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (m,) of the remaining boxes, best first, and their scores (m,), from boxes (n, 4)
        in any unit, scores and labels (n,).
        """
        ...


@dataclass(frozen=True)
class Nms:
    """Of two boxes of a class with an IoU above ``iou_threshold``, removes the one with the lower
    score. Raises UserError if the threshold is outside (0, 1].
    """

    iou_threshold: float = 0.6

    def __post_init__(self) -> None:
        _require_threshold(self.iou_threshold)

    def __call__(self, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Suppress``."""
        boxes, exact = at_least_float32(boxes_xyxy), at_least_float32(scores)
        kept = batched_nms(boxes, exact, labels, self.iou_threshold)
        return kept, scores[kept]


@dataclass(frozen=True)
class SoftNms:
    """Linear soft-NMS within each class, on the CPU in double precision: instead of being removed,
    overlapping boxes get a lower score (Bodla et al., "Soft-NMS", ICCV 2017, eq. 3).

    As in mmcv's ``soft_nms``, a score is multiplied by 1 - IoU where IoU >= ``iou_threshold``, and
    boxes with a decayed score below ``min_score`` are dropped, except the best box of the image.
    Raises UserError if the threshold is outside (0, 1] or ``min_score`` is negative.
    """

    iou_threshold: float = 0.8
    min_score: float = 1e-3

    def __post_init__(self) -> None:
        _require_threshold(self.iou_threshold)
        if self.min_score < 0:
            raise UserError(f"min_score of soft-NMS is {self.min_score}: choose 0 or more")

    def __call__(self, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Suppress``; the scores are decayed, with the device and dtype of the input."""
        (found,) = self.batch([(boxes_xyxy, scores, labels)])
        return found

    def batch(self, images: Sequence[Scored]) -> list[tuple[Tensor, Tensor]]:
        """``__call__`` for each image, with a single copy to the host."""
        if not images:
            return []
        boxes, scores, labels = (torch.cat(part) for part in zip(*images, strict=True))
        exact = at_least_float32(scores).dtype  # classes are below 2^24
        columns = (boxes, scores[:, None], labels[:, None].to(exact))
        table = torch.cat(columns, dim=1).detach().cpu().double().numpy()
        edges = np.cumsum([0, *(len(own) for _, own, _ in images)])
        before, after = table[:, 4], self._decayed(table, edges)
        kept = [
            self._staying(before[start:stop], after[start:stop])
            for start, stop in itertools.pairwise(edges)
        ]
        decayed = np.concatenate([after[a:][own] for a, own in zip(edges, kept, strict=False)])
        index = torch.from_numpy(np.concatenate(kept)).to(scores.device, non_blocking=True)
        left = torch.from_numpy(decayed).to(scores.dtype).to(scores.device, non_blocking=True)
        counts = [len(own) for own in kept]
        return list(zip(index.split(counts), left.split(counts), strict=True))

    def _decayed(self, table: Floats, edges: NDArray[np.int64]) -> Floats:
        """Decayed scores (n,) from rows (n, 6) of box, score, label; ``edges`` delimit images."""
        image = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
        order = np.lexsort((table[:, 5], image))
        changes = (np.diff(table[order, 5]) != 0) | (np.diff(image[order]) != 0)
        borders = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(table)]])
        after = np.empty(len(table))
        after[order] = _compiled_decay()(
            table[order, :4], table[order, 4], borders, self.iou_threshold, self.min_score
        )
        return after

    def _staying(self, before: Floats, after: Floats) -> NDArray[np.int64]:
        """Indices of the remaining boxes of one image, best decayed score first."""
        stays = after >= self.min_score
        if len(before):
            stays[before.argmax()] = True
        order = np.argsort(-after, kind="stable")
        return order[stays[order]]


@dataclass(frozen=True, kw_only=True)
class ClasswiseNms:
    """Suppression within each class, then the ``limit`` best of all classes. ``decay`` builds the
    suppression from its threshold ``iou``.
    """

    iou: float
    limit: int = 100
    decay: Callable[[float], Suppress] = Nms

    def __call__(self, found: Detections) -> Detections:
        """The remaining detections, best score after suppression first."""
        kept, scores = self.decay(self.iou)(found.boxes_xyxy_px, found.scores, found.labels)
        return replace(found.take(kept), scores=scores).take(slice(self.limit))


def _require_threshold(iou_threshold: float) -> None:
    if not 0 < iou_threshold <= 1:
        raise UserError(f"iou_threshold of NMS is {iou_threshold}: choose one in (0, 1]")


def decay(
    boxes: Floats, scores: Floats, borders: NDArray[np.int64], threshold: float, floor: float
) -> Floats:
    """Soft-NMS scores (n,) of the sets between ``borders``: in each set, the box with the best
    current score is picked and decays the boxes not yet picked, until all of these are below
    ``floor``.
    """
    after = scores.copy()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for k in range(len(borders) - 1):
        start, stop = borders[k], borders[k + 1]
        own, area, current = boxes[start:stop], areas[start:stop], after[start:stop]
        waiting = np.ones(stop - start, np.bool_)
        for _ in range(stop - start - 1):  # the last box has none to decay
            pick = np.where(waiting, current, -1.0).argmax()
            if current[pick] < floor:
                break
            waiting[pick] = False
            left, top, right, bottom = own[pick]
            width = np.minimum(own[:, 2], right) - np.maximum(own[:, 0], left)
            height = np.minimum(own[:, 3], bottom) - np.maximum(own[:, 1], top)
            shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)
            iou = shared / np.maximum(area + area[pick] - shared, EPS)
            current *= np.where(waiting & (iou >= threshold), 1.0 - iou, 1.0)
    return after


@cache
def _compiled_decay() -> Callable[[Floats, Floats, NDArray[np.int64], float, float], Floats]:
    """``decay``, compiled if numba can be imported, which takes half a second."""
    try:
        from codetr.compiled import compiled
    except ImportError as error:
        log.warning("numba does not load (%s): soft-NMS runs in Python, which is slower", error)
        return decay
    return compiled()(decay)
