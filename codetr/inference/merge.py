"""One set of detections from several of the same image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from codetr.errors import UserError
from codetr.structures import Detections


class Suppress(Protocol):
    """Decides between overlapping boxes: ``Nms``, or ``codetr.evaluation.SoftNms``."""

    def __call__(self, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (m,) of the boxes that stay, best first, and their scores (m,), from boxes
        (n, 4), scores and labels (n,).
        """
        ...


@dataclass(frozen=True)
class Nms:
    """Class-wise NMS: of two boxes of a class with a larger IoU only the better one stays.

    Raises UserError where the threshold is outside (0, 1].
    """

    iou_threshold: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.iou_threshold <= 1:
            raise UserError(f"merge.iou_threshold is {self.iou_threshold}: choose one in (0, 1]")

    def __call__(self, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Suppress``."""
        keep = batched_nms(boxes_xyxy.float(), scores.float(), labels, self.iou_threshold)
        return keep, scores[keep]


def merged(views: Sequence[Detections], suppress: Suppress, limit: int) -> Detections:
    """The best ``limit`` detections of all ``views``, each object once."""
    boxes = torch.cat([view.boxes_xyxy_px for view in views])
    scores = torch.cat([view.scores for view in views])
    labels = torch.cat([view.labels for view in views])
    keep, scores = suppress(boxes, scores, labels)
    kept = Detections(boxes_xyxy_px=boxes[keep], scores=scores, labels=labels[keep])
    return kept.take(slice(limit))
