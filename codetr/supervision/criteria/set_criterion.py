"""The loss of a set of predictions under a given assignment, and its use on every layer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy, paired_iou
from codetr.loss_terms import Count, Losses, LossTerm, prefixed
from codetr.structures import Assignment, Batch, BoxCounts, Decoded, Predictions, Targets
from codetr.supervision.criteria.class_losses import Classification
from codetr.supervision.overlaps import PIXELS, Overlap


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

    Each is summed and divided by a number of boxes (classification: by its own ``counts``). L1 is
    on relative cxcywh, GIoU as ``overlap`` has it; both are weighted by the target's own weight.
    ``measure`` computes it.
    """

    def __init__(
        self,
        classification: Classification,
        cls: float = 1.0,
        l1: float = 5.0,
        giou: float = 2.0,
        overlap: Overlap = PIXELS,
    ) -> None:
        super().__init__()
        self.classification = classification
        self.cls, self.l1, self.giou = cls, l1, giou
        self.overlap = overlap

    @property
    def reads(self) -> type:
        """The kind of ``codetr.classification`` whose logits it measures."""
        return self.classification.reads


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """A group of queries with its targets: ``layers`` from first to last, each with its assignment
    to ``targets``, measured by ``criterion``; sums are divided by ``num_boxes``; ``background``
    weights the class loss of queries without a target.
    """

    criterion: SetCriterion
    layers: Sequence[Predictions]
    targets: Sequence[Targets]
    assignments: Sequence[Assignment]
    num_boxes: Count
    background: float = 1.0

    @property
    def kind(self) -> Hashable:
        """Groups of equal kind are computed together; weights and numbers of queries may differ."""
        images, _, width = self.layers[0].logits.shape
        losses = self.criterion.classification, self.criterion.overlap
        alone = None if self.criterion.classification.per_query else id(self)
        return *losses, len(self.layers), images, width, alone


def measure(groups: Sequence[Supervised]) -> list[list[Losses]]:
    """``cls``, ``bbox`` and ``giou`` of every layer of every group. Those of one ``kind`` are
    computed at once.
    """
    kinds: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        kinds.setdefault(group.kind, []).append(i)
    found: dict[int, list[Losses]] = {}
    for members in kinds.values():
        found |= zip(members, _together([groups[i] for i in members]), strict=True)
    return [found[i] for i in range(len(groups))]


def _together(groups: Sequence[Supervised]) -> list[list[Losses]]:
    """``measure`` for groups of one kind."""
    criterion, first = groups[0].criterion, groups[0].layers[0]
    assert isinstance(first.classification, criterion.reads), (
        f"{criterion.classification} of {first.classification}"
    )
    boxes, logits = _side_by_side(groups)
    logits = logits.to(boxes.dtype)
    place = _places(groups)
    chosen = _chosen(groups)
    found, wanted = boxes[place], chosen.boxes.to(boxes.dtype)
    corners, wanted_corners = cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted)
    size = chosen.size.repeat(1, 2).to(boxes.dtype)
    weights = chosen.weights.to(boxes.dtype)

    background = first.num_classes
    labels = torch.full(logits.shape[:3], background, device=logits.device)
    labels = labels.index_put(place, chosen.labels)
    iou = paired_iou(corners.detach(), wanted_corners)
    quality = logits.new_zeros(logits.shape[:3]).index_put(place, iou)
    per_query = criterion.classification(logits, labels, quality).sum(-1)
    rows = [group.layers[0].boxes.shape[1] for group in groups]
    importance = torch.empty_like(quality)
    for part, group in zip(importance.split(rows, dim=2), groups, strict=True):
        part.fill_(group.background)
    per_query = per_query * importance.index_put_(place, weights)

    distance = (found - wanted).abs().sum(-1)
    mismatch = 1 - criterion.overlap(corners, wanted_corners, size)
    per_pair = torch.stack([distance, mismatch]) * weights
    pairs = [sum(map(len, group.assignments)) for group in groups]
    parts = zip(
        groups,
        per_query.split(rows, 2),
        (labels < background).split(rows, 2),
        per_pair.split(pairs, 1),
        strict=True,
    )
    return [_terms(*part) for part in parts]


def _terms(group: Supervised, per_query: Tensor, matched: Tensor, per_pair: Tensor) -> list[Losses]:
    """Every layer's losses from those of a group's queries (L, B, Q), ``matched`` or not, and
    pairs (2, P).
    """
    criterion = group.criterion
    of_pairs = _sums(per_pair, [len(assignment) for assignment in group.assignments])
    sums = per_query.sum(dim=(1, 2)), *of_pairs.unbind()
    counts = criterion.classification.counts(matched, group.num_boxes)
    return [
        {
            "cls": LossTerm(cls, criterion.cls, count),
            "bbox": LossTerm(bbox, criterion.l1, group.num_boxes),
            "giou": LossTerm(giou, criterion.giou, group.num_boxes),
        }
        for cls, bbox, giou, count in zip(*map(Tensor.unbind, sums), counts, strict=True)
    ]


def _side_by_side(groups: Sequence[Supervised]) -> tuple[Tensor, Tensor]:
    """Boxes (L, B, Q, 4) and logits (L, B, Q, K) of the queries of all groups."""
    boxes = [torch.stack([layer.boxes for layer in group.layers]) for group in groups]
    logits = [torch.stack([layer.logits for layer in group.layers]) for group in groups]
    if len(groups) == 1:
        return boxes[0], logits[0]
    return torch.cat(boxes, dim=2), torch.cat(logits, dim=2)


def _places(groups: Sequence[Supervised]) -> tuple[Tensor, Tensor, Tensor]:
    """Layer, image and query (P,) of the pairs of all groups' layers, a group's layers one after
    the other.
    """
    every = [assignment for group in groups for assignment in group.assignments]
    layer = np.concatenate([np.arange(len(g.assignments), dtype=np.uint8) for g in groups])
    numbers = torch.from_numpy(layer.repeat([len(assignment) for assignment in every]))
    query, start = [], 0
    for group in groups:
        own = torch.cat([assignment.query for assignment in group.assignments])
        query.append(own + start if start else own)
        start += group.layers[0].boxes.shape[1]
    return (
        numbers.to(every[0].image.device, non_blocking=True).long(),
        torch.cat([assignment.image for assignment in every]),
        torch.cat(query) if len(query) > 1 else query[0],
    )


def _chosen(groups: Sequence[Supervised]) -> Targets:
    """The target of every pair, in the order of ``_places``."""
    index, start = [], 0
    for group in groups:
        own = torch.cat([assignment.target for assignment in group.assignments])
        index.append(own + start if start else own)
        start += sum(map(len, group.targets))
    target = torch.cat(index) if len(index) > 1 else index[0]
    every = concatenated([target for group in groups for target in group.targets])
    return every.map(lambda value: value[target])


def _sums(per_pair: Tensor, counts: Sequence[int]) -> Tensor:
    """(2, L) sums of (2, P) over ``counts[l]`` pairs of every layer. By part, not scattered: in the
    same order on every device.
    """
    if len(set(counts)) == 1:
        return per_pair.unflatten(1, (len(counts), counts[0])).sum(2)
    return torch.stack([part.sum(1) for part in per_pair.split(list(counts), dim=1)], dim=1)


def matched_pairs(
    batch: Batch, queries: int, repeats: int = 1, teacher: int | None = None
) -> float:
    """Number of pairs where the boxes of every image, each ``repeats`` times, are matched one to
    one with its ``queries``: the mean over the batches of an optimiser step. The boxes are the
    ground truth's, or a ``teacher``'s.
    """

    def pairs(counts: BoxCounts) -> int:
        boxes = counts.targets if teacher is None else counts.teachers[teacher]
        return sum(min(repeats * number, queries) for number in boxes)

    return batch.mean_over_step(pairs)


def supervised(
    criterion: SetCriterion,
    layers: Sequence[Predictions],
    targets: Sequence[Targets],
    assignments: Sequence[Assignment],
    background: float = 1.0,
    pairs: float | None = None,
) -> Supervised:
    """A group whose layers all have the same number of pairs, so that they share one count:
    ``pairs``, where it is known over all batches of an optimiser step, else their own.
    """
    number = len(assignments[0]) if pairs is None else pairs
    return Supervised(
        criterion=criterion,
        layers=layers,
        targets=targets,
        assignments=assignments,
        num_boxes=Count.of(number, layers[0].boxes),
        background=background,
    )


def known(
    criterion: SetCriterion, answer: Decoded, background: float = 1.0, pairs: float | None = None
) -> Supervised:
    """``supervised`` for all layers of a decoded group whose assignment is known beforehand."""
    assert answer.group.assignment is not None
    assignments = [answer.group.assignment] * len(answer.layers)
    targets = answer.group.targets
    return supervised(criterion, answer.layers, targets, assignments, background, pairs)


def by_layer(layers: Sequence[Losses]) -> Losses:
    """Losses of layers, under ``layer0/cls`` and so on."""
    losses: Losses = {}
    for i, own in enumerate(layers):
        losses |= prefixed(f"layer{i}", own)
    return losses
