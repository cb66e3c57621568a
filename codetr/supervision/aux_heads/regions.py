"""Sampled regions of an image, on which a second stage is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr.structures import Targets
from codetr.supervision.assigners.max_iou import MaxIouAssigner
from codetr.supervision.assigners.sampling import RandomSampler
from codetr.supervision.aux_heads.matched import Matched, match, true_boxes
from codetr.tensor_struct import TensorStruct


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
                boxes, truths, assignments, self.sampler.batch(assignments), targets, strict=True
            )
        )
