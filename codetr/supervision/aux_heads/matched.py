"""Results of an assignment of boxes: targets, normalisers of losses, candidates, and the
sampled regions on which a second stage is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from codetr.structures import Candidates, Targets
from codetr.supervision.assigners.max_iou import IGNORED, MaxIouAssigner
from codetr.supervision.assigners.sampling import RandomSampler
from codetr.tensor_struct import TensorStruct


@dataclass(frozen=True, kw_only=True)
class Matched(TensorStruct):
    """Targets of A anchors: ``labels`` (A,) with K = background; ``boxes`` (A, 4)
    cxcywh in [0, 1], zeros for background.
    """

    labels: Tensor
    boxes: Tensor

    def take(self, index: Tensor | slice) -> Matched:
        """The targets of the anchors ``index``."""
        return self.map(lambda tensor: tensor[index])


def match(targets: Targets, assigned: Tensor, num_classes: int) -> Matched:
    """The targets of anchors from the result ``assigned`` (A,) of an assigner."""
    # One row is appended for background: index -1 selects it, even where there are no boxes.
    row = assigned.clamp(min=-1)
    labels = F.pad(targets.labels, (0, 1), value=num_classes)
    boxes = F.pad(targets.boxes, (0, 0, 0, 1))
    return Matched(labels=labels[row], boxes=boxes[row])


@dataclass(frozen=True, kw_only=True)
class DenseTargets(TensorStruct):
    """Targets of all A anchors of all images: ``labels`` (B, A) with K = background; ``positive``
    and ``ignored`` (B, A) bool; ``boxes_px`` (B, A, 4) xyxy; ``matched``, the same by image, in the
    form that candidates take.

    The target box of a background anchor is the anchor, so that every loss is finite before it is
    masked.
    """

    labels: Tensor
    positive: Tensor
    ignored: Tensor
    boxes_px: Tensor
    matched: tuple[Matched, ...]


def dense_targets(
    assigned: Tensor, targets: Sequence[Targets], anchors_px: Tensor, num_classes: int
) -> DenseTargets:
    """From the results ``assigned`` (B, A) of an assigner; ``anchors_px`` (A, 4) xyxy."""
    rows = zip(targets, assigned, strict=True)
    matched = tuple(match(target, row, num_classes) for target, row in rows)
    labels = torch.stack([m.labels for m in matched])
    positive = labels < num_classes
    boxes = torch.stack([boxes_xyxy_px(m.boxes, t) for m, t in zip(matched, targets, strict=True)])
    boxes = torch.where(positive[..., None], boxes, anchors_px)
    return DenseTargets(
        labels=labels,
        positive=positive,
        ignored=assigned == IGNORED,
        boxes_px=boxes,
        matched=matched,
    )


def count_positives(positive: Tensor) -> Tensor:
    """() number of ``positive`` (B, A) bool, at least 1 per image."""
    return positive.sum(dim=1).clamp(min=1).sum()


def boxes_xyxy_px(boxes: Tensor, targets: Targets) -> Tensor:
    """(N, 4) corners in pixels of cxcywh ``boxes`` (N, 4) relative to the image of ``targets``."""
    return cxcywh_to_xyxy(boxes * targets.size_whwh)


def true_boxes(targets: Sequence[Targets]) -> list[Tensor]:
    """The corners in pixels (N, 4) of the boxes of every image."""
    return [boxes_xyxy_px(one.boxes, one) for one in targets]


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


@dataclass(frozen=True, kw_only=True)
class Regions(TensorStruct):
    """Sampled regions of one image, positives first: ``boxes`` (R, 4) xyxy px, their targets
    ``matched``, and ``target`` (P,), the index of the object of each of the P positives.
    """

    boxes: Tensor
    matched: Matched
    target: Tensor

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def positive_boxes(self) -> Tensor:
        """(P, 4) xyxy px."""
        return self.boxes[: len(self.target)]

    @property
    def positive_labels(self) -> Tensor:
        """(P,) the classes of their objects."""
        return self.matched.labels[: len(self.target)]


@dataclass(frozen=True, kw_only=True)
class RegionSampler:
    """Assigns boxes by IoU and samples regions from them and the true boxes (Ren et al. 2015)."""

    assigner: MaxIouAssigner
    sampler: RandomSampler
    num_classes: int

    def __call__(self, boxes: Sequence[Tensor], targets: Sequence[Targets]) -> tuple[Regions, ...]:
        """The regions of every image, from the true boxes and ``boxes`` (R_b, 4) xyxy px."""
        truths = true_boxes(targets)
        assignments = [
            torch.cat([torch.arange(len(truth), device=own.device), self.assigner(own, truth)])
            for own, truth in zip(boxes, truths, strict=True)
        ]
        return tuple(
            Regions(
                boxes=torch.cat([truth.to(own.dtype), own])[chosen.index],
                matched=match(target, assigned[chosen.index], self.num_classes),
                target=assigned[chosen.positive],
            )
            for own, truth, assigned, chosen, target in zip(
                boxes, truths, assignments, self.sampler(assignments), targets, strict=True
            )
        )
