"""The loss of a set of predictions under a given assignment, and its use on every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy, paired_giou, paired_iou
from codetr.criteria.focal import quality_focal_loss, sigmoid_focal_loss
from codetr.distributed import mean_over_ranks
from codetr.structures import Assignment, Losses, LossTerm, Predictions, Targets, prefixed


class Classification(Protocol):
    """A classification loss: which targets a matched class gets, and how they are measured."""

    def __call__(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """Elementwise (L, B, Q, K) of L layers' ``logits`` (L, B, Q, K), ``labels`` (L, B, Q) with
        K = background, and ``quality`` (L, B, Q), the IoU of each matched box, 0 elsewhere.
        """
        ...


def _class_targets(logits: Tensor, labels: Tensor, value: Tensor) -> Tensor:
    """(..., K) zeros with ``value`` (...) at each label; background rows stay zero."""
    table = logits.new_zeros(*labels.shape, logits.shape[-1] + 1)
    return table.scatter(-1, labels[..., None], value[..., None].to(table.dtype))[..., :-1]


class FocalClassification(nn.Module):
    """Sigmoid focal loss with hard targets (Deformable DETR, Co-Deformable-DETR)."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """See ``Classification``."""
        targets = _class_targets(logits, labels, torch.ones_like(quality))
        return sigmoid_focal_loss(logits, targets, self.alpha, self.gamma)


class QualityClassification(nn.Module):
    """Quality focal loss: a matched class's target is its box's IoU (GFL, Co-DINO)."""

    def __init__(self, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, logits: Tensor, labels: Tensor, quality: Tensor) -> Tensor:
        """See ``Classification``."""
        return quality_focal_loss(logits, _class_targets(logits, labels, quality), self.beta)


def concatenated(targets: Sequence[Targets]) -> Targets:
    """The targets of all images one after the other; ``size`` becomes (N, 2), one per box."""
    return Targets(
        boxes=torch.cat([t.boxes for t in targets]),
        labels=torch.cat([t.labels for t in targets]),
        weights=torch.cat([t.weights for t in targets]),
        size=torch.cat([t.size.expand(len(t), 2) for t in targets]),
    )


class SetCriterion(nn.Module):
    """Classification of all queries, L1 and GIoU of the matched ones (DETR, equation 2).

    Each is summed and divided by ``num_boxes``. L1 is on relative cxcywh, GIoU on pixels; both
    are weighted by the target's own weight.
    """

    def __init__(
        self,
        classification: Classification,
        cls: float = 1.0,
        l1: float = 5.0,
        giou: float = 2.0,
    ) -> None:
        super().__init__()
        self.classification = classification
        self.cls, self.l1, self.giou = cls, l1, giou

    def forward(
        self,
        predictions: Predictions,
        targets: Sequence[Targets],
        assignment: Assignment,
        num_boxes: Tensor,
        background: float = 1.0,
    ) -> Losses:
        """Losses ``cls``, ``bbox`` and ``giou`` of one layer; ``background`` weights the class
        loss of queries without a target.
        """
        (losses,) = self.layers([predictions], targets, [assignment], num_boxes, background)
        return losses

    def layers(
        self,
        layers: Sequence[Predictions],
        targets: Sequence[Targets],
        assignments: Sequence[Assignment],
        num_boxes: Tensor,
        background: float = 1.0,
    ) -> list[Losses]:
        """The losses of every layer by itself; all are computed at once."""
        boxes = torch.stack([layer.boxes for layer in layers])
        logits = torch.stack([layer.logits for layer in layers]).to(boxes.dtype)
        counts = [len(assignment) for assignment in assignments]
        place = _places(assignments, boxes.device)
        target = torch.cat([assignment.target for assignment in assignments])
        chosen = concatenated(targets).map(lambda value: value[target])
        found, wanted = boxes[place], chosen.boxes.to(boxes.dtype)
        corners, wanted_corners = cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted)
        size = chosen.size.repeat(1, 2).to(boxes.dtype)
        weights = chosen.weights.to(boxes.dtype)

        labels = torch.full(logits.shape[:3], logits.shape[-1], device=logits.device)
        labels = labels.index_put(place, chosen.labels)
        overlap = paired_iou(corners.detach(), wanted_corners)
        quality = logits.new_zeros(logits.shape[:3]).index_put(place, overlap)
        per_query = self.classification(logits, labels, quality).sum(-1)
        importance = torch.full_like(quality, background).index_put(place, weights)

        distance = (found - wanted).abs().sum(-1)
        mismatch = 1 - paired_giou(corners * size, wanted_corners * size)
        per_pair = torch.stack([distance, mismatch]) * weights
        # A sum per part, not a scattered one: in the same order on every device.
        bbox, giou = torch.stack([part.sum(1) for part in per_pair.split(counts, dim=1)], dim=1)
        cls = (per_query * importance).sum(dim=(1, 2))
        divisor = num_boxes.to(boxes.dtype) + torch.finfo(boxes.dtype).eps
        weighted = zip((cls, bbox, giou), (self.cls, self.l1, self.giou), strict=True)
        terms = [[LossTerm(v, w) for v in (raw / divisor).unbind()] for raw, w in weighted]
        return [
            dict(zip(("cls", "bbox", "giou"), own, strict=True)) for own in zip(*terms, strict=True)
        ]


def _places(
    assignments: Sequence[Assignment], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer, image and query (P,) of the pairs of all layers, one layer after the other."""
    layer = [torch.full((len(a),), i, device=device) for i, a in enumerate(assignments)]
    return (
        torch.cat(layer),
        torch.cat([a.image for a in assignments]),
        torch.cat([a.query for a in assignments]),
    )


def normaliser(assignment: Assignment, like: Tensor) -> Tensor:
    """Number of pairs, averaged over processes, at least 1."""
    count = torch.full((), float(len(assignment)), dtype=like.dtype, device=like.device)
    return mean_over_ranks(count).clamp(min=1)


def deep_supervision(
    criterion: SetCriterion,
    layers: Sequence[Predictions],
    targets: Sequence[Targets],
    assignments: Sequence[Assignment],
    background: float = 1.0,
) -> Losses:
    """The criterion on every layer, under ``layer0/cls`` and so on. All layers have the same
    number of pairs, so they share one normaliser. ``background`` as in ``SetCriterion``.
    """
    losses: Losses = {}
    num_boxes = normaliser(assignments[0], layers[0].boxes)
    measured = criterion.layers(layers, targets, assignments, num_boxes, background)
    for i, own in enumerate(measured):
        losses |= prefixed(f"layer{i}", own)
    return losses
