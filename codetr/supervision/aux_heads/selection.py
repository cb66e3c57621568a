"""Selection of detections from the scores and boxes of a head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from codetr.boxes import pairwise_iou
from codetr.nms import ClasswiseNms
from codetr.structures import Detections


class Selection(Protocol):
    """A choice among the (anchor, class) pairs of one image."""

    def __call__(
        self,
        scores: Tensor,
        boxes_px: Tensor,
        level_sizes: tuple[int, ...],
        quality: Tensor | None = None,
    ) -> Detections:
        """``scores`` (A, K) and ``quality`` (A,) in [0, 1]; ``boxes_px`` (A, 4) decoded and
        clipped xyxy.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DenseSelection:
    """Test-time choice among the (anchor, class) pairs of a dense head.

    Per level the ``per_level`` pairs of highest class score above ``threshold``; these are ranked
    by class score times localisation quality and go through ``nms``.
    """

    nms: ClasswiseNms
    per_level: int = 1000
    threshold: float = 0.0

    def __call__(
        self,
        scores: Tensor,
        boxes_px: Tensor,
        level_sizes: tuple[int, ...],
        quality: Tensor | None = None,
    ) -> Detections:
        """See ``Selection``."""
        found, start = [], 0
        for level in scores.split(list(level_sizes)):
            anchor, label, score = top_pairs(level, self.per_level, self.threshold)
            anchor = anchor + start
            score = score if quality is None else score * quality[anchor]
            found.append((boxes_px[anchor], score, label))
            start += len(level)
        boxes, score, labels = (torch.cat(part) for part in zip(*found, strict=True))
        return self.nms(Detections(boxes_xyxy_px=boxes, scores=score, labels=labels))


@dataclass(frozen=True, kw_only=True)
class VotedSelection:
    """Test-time choice of PAA (Kim and Lee 2020, section 3.2 and equation 9).

    A pair's score is the root of class probability times quality. Per level the ``per_level``
    anchors of highest score in any class; of their pairs those above ``threshold`` go through
    ``nms``. Each kept box then becomes the mean of all these anchors' boxes that overlap it and
    have its class, suppressed ones too, weighted by score and by ``exp(-(1 - IoU)^2 / spread)``.
    """

    nms: ClasswiseNms
    per_level: int = 1000
    threshold: float = 0.05
    min_iou: float = 0.01
    spread: float = 0.025

    def __call__(
        self,
        scores: Tensor,
        boxes_px: Tensor,
        level_sizes: tuple[int, ...],
        quality: Tensor | None = None,
    ) -> Detections:
        """See ``Selection``; best first."""
        scores = (scores if quality is None else scores * quality[:, None]).sqrt()
        index = self._best(scores, level_sizes)
        scores, boxes = scores[index], boxes_px[index]
        anchor, label = (scores > self.threshold).nonzero().unbind(dim=1)
        kept = self.nms(
            Detections(boxes_xyxy_px=boxes[anchor], scores=scores[anchor, label], labels=label)
        )
        return replace(kept, boxes_xyxy_px=self._vote(kept, scores, boxes))

    def _best(self, scores: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
        """Indices of the anchors of highest score."""
        found, start = [], 0
        for level in scores.split(list(level_sizes)):
            index = torch.arange(len(level), device=level.device)
            if len(level) > self.per_level:
                index = level.amax(dim=1).topk(self.per_level).indices
            found.append(index + start)
            start += len(level)
        return torch.cat(found)

    def _vote(self, kept: Detections, scores: Tensor, boxes: Tensor) -> Tensor:
        """(N, 4) boxes after the vote. A box without area overlaps nothing, itself included: it
        stays (where the official code has NaN).
        """
        overlap = pairwise_iou(kept.boxes_xyxy_px, boxes)
        votes = scores[:, kept.labels].T
        nearness = (-(1 - overlap).square() / self.spread).exp()
        weight = votes * nearness * ((votes > self.threshold) & (overlap > self.min_iou))
        total = weight.sum(dim=1, keepdim=True)
        return torch.where(total > 0, weight @ boxes / total, kept.boxes_xyxy_px)


def top_pairs(scores: Tensor, limit: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of the ``limit`` largest entries of ``scores`` (A, K) that are above
    ``threshold``, largest first.
    """
    values, index = scores.flatten().topk(min(limit, scores.numel()))
    values, index = values[values > threshold], index[values > threshold]
    return index // scores.shape[1], index % scores.shape[1], values
