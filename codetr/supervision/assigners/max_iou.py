"""Assignment by overlap, as in Faster R-CNN and RetinaNet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.boxes import pairwise_iou

NEGATIVE = -1
"""Marks an anchor as background."""
IGNORED = -2
"""Marks an anchor that enters no loss."""

PAIRS_AT_ONCE = 2**22
"""Anchors times boxes per chunk: 16 MiB for each of some ten temporaries, where all pairs of
802,000 anchors and 100 boxes would take 310 MiB each."""


@dataclass(frozen=True, kw_only=True)
class MaxIouAssigner:
    """Assigns each anchor to the box of highest IoU (Ren et al. 2015, section 3.1.2).

    IoU >= ``positive`` makes an anchor positive, < ``negative`` background; in between it is
    ignored. With ``low_quality`` (an IoU, None = off), a box whose best IoU reaches that value is
    also assigned *every* anchor that attains its best IoU, overriding other assignments; of several
    such boxes the last one wins.
    """

    positive: float
    negative: float
    low_quality: float | None = None

    def __call__(self, anchors: Tensor, boxes: Tensor, usable: Tensor | None = None) -> Tensor:
        """Index (A,) into ``boxes`` for every anchor, ``NEGATIVE`` or ``IGNORED``.

        ``anchors`` (A, 4) and ``boxes`` (N, 4) xyxy in one unit; anchors that are not ``usable``
        (A,) are ignored, also as the best anchor of a box.
        """
        assigned = anchors.new_full((len(anchors),), NEGATIVE, dtype=torch.long)
        if len(boxes) and len(anchors):
            overlaps = self._overlaps(anchors, boxes, usable)
            assigned = torch.cat([self._by_best(overlap) for overlap in overlaps])
            if self.low_quality is not None:
                forced = self._forced(overlaps, self.low_quality)
                assigned = torch.where(forced >= 0, forced, assigned)
        return assigned if usable is None else assigned.masked_fill(~usable, IGNORED)

    @staticmethod
    def _overlaps(anchors: Tensor, boxes: Tensor, usable: Tensor | None) -> list[Tensor]:
        """IoU (N, C) of the boxes with every chunk of anchors, -1 if not usable."""
        size = max(1, PAIRS_AT_ONCE // len(boxes))
        overlaps = [pairwise_iou(boxes, chunk) for chunk in anchors.split(size)]
        if usable is not None:
            for overlap, chunk in zip(overlaps, (~usable).split(size), strict=True):
                overlap.masked_fill_(chunk, -1)
        return overlaps

    def _by_best(self, overlap: Tensor) -> Tensor:
        """(C,) assignment of anchors by their best ``overlap`` (N, C)."""
        best, index = overlap.max(dim=0)
        assigned = torch.where(best >= self.negative, IGNORED, NEGATIVE)
        return torch.where(best >= self.positive, index, assigned)

    @staticmethod
    def _forced(overlaps: list[Tensor], minimum: float) -> Tensor:
        """(A,) the last box that claims an anchor as one of its best, -1 for none."""
        best = torch.stack([overlap.amax(dim=1) for overlap in overlaps]).amax(dim=0)[:, None]
        # no IoU exceeds 1: boxes below the minimum then tie with no anchor
        best = torch.where(best >= minimum, best, 2)
        index = torch.arange(len(best), device=best.device)[:, None]
        return torch.cat(
            [torch.where(overlap == best, index, NEGATIVE).amax(dim=0) for overlap in overlaps]
        )
