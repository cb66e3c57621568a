"""What an assignment gives to anchors: targets, what losses are divided by, and candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from codetr.structures import Candidates, Targets, TensorStruct


@dataclass(frozen=True, kw_only=True)
class Matched(TensorStruct):
    """What each of A anchors shall predict: ``labels`` (A,) with K = background; ``boxes`` (A, 4)
    cxcywh in [0, 1], zeros for background.
    """

    labels: Tensor
    boxes: Tensor


def match(targets: Targets, assigned: Tensor, num_classes: int) -> Matched:
    """Look up what an assigner's answer ``assigned`` (A,) stands for."""
    # One row is appended for background; an index of -1 finds it, also where there are no boxes.
    row = assigned.clamp(min=-1)
    labels = F.pad(targets.labels, (0, 1), value=num_classes)
    boxes = F.pad(targets.boxes, (0, 0, 0, 1))
    return Matched(labels=labels[row], boxes=boxes[row])


@dataclass(frozen=True, kw_only=True)
class DenseTargets(TensorStruct):
    """What all A anchors of all images shall predict: ``labels`` (B, A) with K = background;
    ``positive`` (B, A) bool; ``boxes_px`` (B, A, 4) xyxy.

    A background anchor is its own target box, so that every loss is finite everywhere; the losses
    mask it.
    """

    labels: Tensor
    positive: Tensor
    boxes_px: Tensor


def dense_targets(
    matched: Sequence[Matched], targets: Sequence[Targets], anchors_px: Tensor, num_classes: int
) -> DenseTargets:
    """Stack the images' targets; ``anchors_px`` (A, 4) xyxy."""
    labels = torch.stack([m.labels for m in matched])
    positive = labels < num_classes
    boxes = torch.stack([boxes_xyxy_px(m.boxes, t) for m, t in zip(matched, targets, strict=True)])
    boxes = torch.where(positive[..., None], boxes, anchors_px)
    return DenseTargets(labels=labels, positive=positive, boxes_px=boxes)


def count_positives(positive: Tensor) -> Tensor:
    """() how many of ``positive`` (B, A) bool are set; an image without any counts 1."""
    return positive.sum(dim=1).clamp(min=1).sum()


def divisor(total: Tensor, minimum: float = 0.0) -> Tensor:
    """``total``, at least ``minimum``, plus the epsilon of its type: 0 / 0 becomes 0 (mmdet)."""
    return total.clamp(min=minimum) + torch.finfo(total.dtype).eps


def boxes_xyxy_px(boxes: Tensor, targets: Targets) -> Tensor:
    """(N, 4) corners in pixels of cxcywh ``boxes`` (N, 4) relative to the image of ``targets``."""
    return cxcywh_to_xyxy(boxes * targets.size_whwh)


def candidates(
    boxes_px: Tensor, matched: Matched, features: Tensor, targets: Targets
) -> Candidates:
    """Candidates of one image from assigned ``boxes_px`` (M, 4) xyxy in pixels."""
    return Candidates(
        boxes=xyxy_to_cxcywh(boxes_px.detach()) / targets.size_whwh,
        labels=matched.labels,
        targets=matched.boxes,
        features=features,
    )


def anchor_candidates(
    boxes_px: Tensor,
    usable: Tensor,
    matched: Sequence[Matched],
    features: Tensor,
    targets: Sequence[Targets],
) -> tuple[Candidates, ...]:
    """All anchors ``boxes_px`` (A, 4) of every image as candidates, with ``features`` (B, A, C).

    Those that are not ``usable`` (B, A) are background with zero coordinates, as in Co-DETR.
    """
    return tuple(
        candidates(boxes_px * free[:, None], *parts)
        for free, *parts in zip(usable, matched, features, targets, strict=True)
    )
