"""Adaptive training sample selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.boxes import centres_xyxy, encode_distances, paired_iou
from codetr.supervision.assigners.max_iou import IGNORED, NEGATIVE
from codetr.supervision.assigners.sampling import best_of_levels


@dataclass(frozen=True, kw_only=True)
class AtssAssigner:
    """Assignment with an adaptive IoU threshold per box (Zhang et al. 2020, algorithm 1).

    Candidates of a box are the ``per_level`` anchors of every level whose centres are nearest to
    its centre. Those whose IoU reaches the mean plus the (unbiased) standard deviation over the
    candidates are positive if their centre lies inside the box by more than ``margin`` pixels. An
    anchor that is positive for several boxes goes to the one of highest IoU.
    """

    per_level: int = 9
    margin: float = 0.01

    def __call__(
        self, anchors: Tensor, level_sizes: Sequence[int], boxes: Tensor, usable: Tensor
    ) -> Tensor:
        """Index (A,) into ``boxes`` for every anchor, ``NEGATIVE`` or ``IGNORED``.

        ``anchors`` (A, 4) and ``boxes`` (N, 4) xyxy px; ``level_sizes`` how many of the anchors
        belong to each level; anchors that are not ``usable`` (A,) are ignored.
        """
        assigned = anchors.new_full((len(anchors),), NEGATIVE, dtype=torch.long)
        if len(boxes):
            candidates = self._nearest(anchors, level_sizes, boxes, usable)
            overlap = paired_iou(anchors[candidates], boxes)
            positive = overlap >= _threshold(overlap, usable[candidates])
            positive &= self._inside(anchors[candidates], boxes) & usable[candidates]
            wanted = overlap.new_full((len(anchors), len(boxes)), -1)
            wanted.scatter_(0, candidates, torch.where(positive, overlap, -1))
            best, index = wanted.max(dim=1)
            assigned = torch.where(best >= 0, index, assigned)
        return assigned.masked_fill(~usable, IGNORED)

    def _nearest(
        self, anchors: Tensor, level_sizes: Sequence[int], boxes: Tensor, usable: Tensor
    ) -> Tensor:
        """(M, N) indices of every box's candidates; unusable anchors come last."""
        offset = centres_xyxy(anchors)[:, None] - centres_xyxy(boxes)
        distance = torch.linalg.vector_norm(offset, dim=-1)
        distance = distance.masked_fill(~usable[:, None], torch.inf)
        return best_of_levels(distance, level_sizes, self.per_level, dim=0, largest=False)

    def _inside(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(M, N) whether the centre of ``anchors`` (M, N, 4) is inside ``boxes`` (N, 4)."""
        return encode_distances(centres_xyxy(anchors), boxes).amin(dim=-1) > self.margin


def _threshold(overlap: Tensor, valid: Tensor) -> Tensor:
    """(N,) mean plus standard deviation over the valid rows of ``overlap`` (M, N).

    A single valid row has no deviation: the threshold is NaN and nothing reaches it, as in the
    official code.
    """
    count = valid.sum(dim=0)
    mean = (overlap * valid).sum(dim=0) / count
    variance = ((overlap - mean).square() * valid).sum(dim=0) / (count - 1)
    return mean + variance.sqrt()
