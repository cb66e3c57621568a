"""Contrastive denoising: noisy copies of the ground truth as further queries (DINO, section 3.3).

Layout of the queries, for n boxes at most in an image of the batch: ``groups`` times
[n positive slots, n negative slots]. Image i fills its first n_i slots of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy, logit, xyxy_to_cxcywh
from codetr.models.detectors.protocol import MAIN
from codetr.models.transformers import QueryForm
from codetr.structures import Assignment, Batch, BoxCounts, Decoded, Queries, QueryGroup, Targets
from codetr.supervision.criteria import SetCriterion, by_layer, known
from codetr.supervision.schemes.protocol import Proposal, Scheme, Start
from codetr.supervision.schemes.scoring import Score, measured

GROUP = "denoising"
LOGIT_EPS = 1e-3


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The random numbers of one batch, for B images, G groups, n slots; axis 2 is (positive,
    negative).

    ``flip`` (B, G, 2, n) uniform in [0, 1); ``labels`` (B, G, 2, n) replacement labels; ``signs``
    (B, G, 2, n, 4) -1 or 1; ``shifts`` (B, G, 2, n, 4) uniform in [0, 1).
    """

    flip: Tensor
    labels: Tensor
    signs: Tensor
    shifts: Tensor


class Denoising(Scheme):
    """Queries made from noisy boxes and labels, whose targets are known without matching.

    Args:
        criterion: measures the reconstruction.
        num_classes: size K of the label embedding.
        dim: width of queries.
        num_queries: approximate number of positive queries; groups = num_queries // n, at least 1.
        label_noise: a label is redrawn with half this probability.
        box_noise: each side moves by up to this share of half the box; negatives by 1 to 2 times.
    """

    adds_groups = True
    form = QueryForm()

    def __init__(
        self,
        criterion: SetCriterion,
        num_classes: int,
        dim: int = 256,
        num_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.label_embedding = nn.Embedding(num_classes, dim)
        self.num_queries = num_queries
        self.label_noise, self.box_noise = label_noise, box_noise

    def propose(self, start: Start) -> Proposal:
        """One group. Without a box in the batch it is empty, so that processes with and without
        boxes take the same steps.
        """
        targets, like = start.batch.targets, start.memory.valid_ratios
        most = max(len(t) for t in targets)
        noise = self.draw(len(targets), self._groups(most), most, like)
        return Proposal(groups=(self.group(targets, noise),))

    def _groups(self, most: int) -> int:
        """How many, where an image of the batch has up to ``most`` boxes."""
        return max(1, self.num_queries // most) if most else 0

    def _pairs(self, boxes: BoxCounts) -> int:
        return self._groups(max(boxes.targets)) * sum(boxes.targets)

    def draw(self, images: int, groups: int, slots: int, like: Tensor) -> Noise:
        """Fresh random numbers on the device of ``like``."""
        shape = (images, groups, 2, slots)
        options: dict[str, Any] = {"device": like.device}
        return Noise(
            flip=torch.rand(shape, **options),
            labels=torch.randint(self.label_embedding.num_embeddings, shape, **options),
            signs=torch.randint(2, (*shape, 4), **options) * 2 - 1,
            shifts=torch.rand((*shape, 4), **options, dtype=like.dtype),
        )

    def group(self, targets: Sequence[Targets], noise: Noise) -> QueryGroup:
        """The query group for the targets of a batch under the given noise."""
        used, labels, boxes = padded(targets, noise.flip.shape[-1])
        labels = torch.where(
            noise.flip < self.label_noise * 0.5, noise.labels, labels[:, None, None]
        )
        boxes = self._shifted(boxes.to(noise.shifts.dtype)[:, None, None], noise)
        return noisy_group(GROUP, targets, self.label_embedding(labels), boxes, used[:, None, None])

    def _shifted(self, boxes: Tensor, noise: Noise) -> Tensor:
        """(B, G, 2, n, 4) boxes with moved sides; those of negatives move by 1 to 2 times."""
        further = torch.arange(2, dtype=boxes.dtype, device=boxes.device)
        reach = boxes[..., 2:].repeat(1, 1, 1, 1, 2) / 2
        moves = noise.signs * (noise.shifts + further[:, None, None]) * reach * self.box_noise
        return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + moves).clamp(0, 1))

    def score(self, decoded: Mapping[str, Decoded], batch: Batch) -> Score:
        """``layer{i}/...``; every slot that is not a positive counts as background."""
        pairs = batch.mean_over_step(self._pairs)
        (layers,) = yield from measured(known(self.criterion, decoded[GROUP], pairs=pairs))
        return by_layer(layers)


def noisy_group(
    name: str, targets: Sequence[Targets], content: Tensor, boxes: Tensor, used: Tensor
) -> QueryGroup:
    """The group ``name`` of queries with ``content`` (B, G, ..., n, C) at ``boxes`` (B, G, ..., n,
    4), which see the main queries and those of their own of the G groups. Slots that are not
    ``used`` (bool, broadcasts to (B, G, ..., n)) hold zeros and a box in the middle.
    """
    used = used.expand(boxes.shape[:-1])[..., None]
    anchors = torch.where(used, logit(boxes, LOGIT_EPS), 0.0).sigmoid()
    groups, size = boxes.shape[1], math.prod(boxes.shape[2:-1])
    return QueryGroup(
        name=name,
        queries=Queries(content=(content * used).flatten(1, -2), anchors=anchors.flatten(1, -2)),
        targets=tuple(targets),
        assignment=same_slots(targets, groups, size),
        blocked=other_groups(groups, size, anchors.device),
        sees=(MAIN,),
    )


def padded(targets: Sequence[Targets], slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which slots are used (B, n), and labels (B, n) and boxes (B, n, 4), zeros elsewhere."""
    like = targets[0]
    used = torch.zeros(len(targets), slots, dtype=torch.bool, device=like.labels.device)
    labels = like.labels.new_zeros(len(targets), slots)
    boxes = like.boxes.new_zeros(len(targets), slots, 4)
    for i, target in enumerate(targets):
        used[i, : len(target)] = True
        labels[i, : len(target)] = target.labels
        boxes[i, : len(target)] = target.boxes
    return used, labels, boxes


def same_slots(targets: Sequence[Targets], groups: int, size: int) -> Assignment:
    """Slot j of every group belongs to box j of its image; groups have ``size`` slots."""
    device = targets[0].labels.device
    image, query, target = [], [], []
    offset = 0
    for i, boxes in enumerate(targets):
        own = torch.arange(len(boxes), device=device)
        starts = torch.arange(groups, device=device) * size
        query.append((starts[:, None] + own).flatten())
        target.append((own + offset).repeat(groups))
        image.append(torch.full_like(query[-1], i))
        offset += len(boxes)
    return Assignment(image=torch.cat(image), query=torch.cat(query), target=torch.cat(target))


def other_groups(groups: int, size: int, device: torch.device) -> Tensor:
    """(G*size, G*size) True where row and column are of different groups."""
    index = torch.arange(groups, device=device).repeat_interleave(size)
    return index[:, None] != index
