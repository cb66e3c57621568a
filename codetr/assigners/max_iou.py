"""Assignment by overlap, as in Faster R-CNN and RetinaNet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.boxes import pairwise_iou

NEGATIVE = -1
"""What an assigner writes for an anchor that is background."""
IGNORED = -2
"""What an assigner writes for an anchor that takes no part in any loss."""


@dataclass(frozen=True, kw_only=True)
class MaxIouAssigner:
    """Gives an anchor the box it overlaps most (Ren et al. 2015, section 3.1.2).

    IoU >= ``positive`` makes it positive, < ``negative`` background, between them ignored. With
    ``low_quality`` (an IoU, None = off) a box whose best IoU reaches that value takes *every*
    anchor that ties with its best one, whatever that anchor had; among several such boxes the
    last one has it.
    """

    positive: float
    negative: float
    low_quality: float | None = None

    def __call__(self, anchors: Tensor, boxes: Tensor, usable: Tensor | None = None) -> Tensor:
        """Index (A,) into ``boxes`` for every anchor, ``NEGATIVE`` or ``IGNORED``.

        ``anchors`` (A, 4) and ``boxes`` (N, 4) xyxy in one unit; anchors that are not ``usable``
        (A,) are ignored and never a box's best.
        """
        assigned = anchors.new_full((len(anchors),), NEGATIVE, dtype=torch.long)
        if len(boxes) and len(anchors):
            overlap = pairwise_iou(anchors, boxes)
            if usable is not None:
                overlap = overlap.masked_fill(~usable[:, None], -1)
            best, index = overlap.max(dim=1)
            assigned = torch.where(best >= self.negative, IGNORED, assigned)
            assigned = torch.where(best >= self.positive, index, assigned)
            if self.low_quality is not None:
                forced = self._forced(overlap, self.low_quality)
                assigned = torch.where(forced >= 0, forced, assigned)
        return assigned if usable is None else assigned.masked_fill(~usable, IGNORED)

    @staticmethod
    def _forced(overlap: Tensor, minimum: float) -> Tensor:
        """(A,) the last box that claims an anchor as one of its best, -1 for none."""
        best = overlap.amax(dim=0)
        claimed = (overlap == best) & (best >= minimum)
        index = torch.arange(overlap.shape[1], device=overlap.device)
        return torch.where(claimed, index, NEGATIVE).amax(dim=1)
