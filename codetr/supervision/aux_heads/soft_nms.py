"""Soft suppression for the detections of one branch alone, as in Co-DETR's larger recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from codetr.structures import Detections

Decay = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From boxes (N, 4) xyxy, scores (N,) and labels (N,) to the indices that stay, best first, and
their new scores: ``codetr.evaluation.SoftNms`` is one."""


@dataclass(frozen=True, kw_only=True)
class ClasswiseSoftNms:
    """Boxes lose score to better ones of their class, then the ``limit`` best of all classes.

    ``decay`` builds the suppression from the overlap ``iou`` at which it begins.
    """

    iou: float
    limit: int = 100
    decay: Callable[[float], Decay]

    def __call__(self, found: Detections) -> Detections:
        """The survivors, best decayed score first."""
        kept, scores = self.decay(self.iou)(found.boxes_xyxy_px, found.scores, found.labels)
        kept = kept[: self.limit]
        return replace(found.take(kept), scores=scores[: self.limit])
