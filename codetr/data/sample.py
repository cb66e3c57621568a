"""An image with its boxes, from reading the file to collating the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from codetr.tensor_struct import TensorStruct


class SampleKey(NamedTuple):
    """A request of a sampler: the index of an image, the epoch to augment it for, and the number of
    its copy in that epoch (copies are augmented independently).
    """

    image: int
    epoch: int = 0
    copy: int = 0


@dataclass(frozen=True, kw_only=True)
class BoxSet(TensorStruct):
    """Boxes of one image from one source: the ground truth, or a teacher.

    ``boxes`` (N, 4) float32 xyxy in pixels of the current image; ``labels`` (N,) int64, contiguous
    class indices; ``scores`` (N,) float32, 1 for ground truth; ``masks`` (N, H, W) uint8, 1 on the
    object, in pixels of the current image, or None if no step needs them.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    @classmethod
    def ground_truth(cls, boxes: Tensor, labels: Tensor) -> BoxSet:
        """A set in which all scores are 1."""
        return cls(boxes=boxes, labels=labels, scores=torch.ones(len(labels)))

    @classmethod
    def empty(cls) -> BoxSet:
        """No boxes."""
        return cls.ground_truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))

    @classmethod
    def joined(cls, sets: Sequence[BoxSet]) -> BoxSet:
        """The boxes of several sets of one image; with masks if all sets have them."""
        masks = [s.masks for s in sets if s.masks is not None]
        return cls(
            boxes=torch.cat([s.boxes for s in sets]),
            labels=torch.cat([s.labels for s in sets]),
            scores=torch.cat([s.scores for s in sets]),
            masks=torch.cat(masks) if len(masks) == len(sets) else None,
        )

    def select(self, keep: Tensor) -> BoxSet:
        """The subset given by ``keep``: bool (N,), or indices."""
        if keep.dtype == torch.bool:
            if keep.all():
                return self
            keep = keep.nonzero().flatten()
        # Masks are large: index_select copies whole rows, indexing single elements.
        return self.map(lambda values: values.index_select(0, keep))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image, its targets (no crowd regions) and its teachers' boxes.

    ``image`` (3, H, W) uint8 RGB; ``original_size`` (height, width) of the file; ``scale`` (x, y)
    product of all resizes so far, per axis; ``image_id`` of the annotation file.
    """

    image: Tensor
    targets: BoxSet
    teachers: tuple[BoxSet, ...] = ()
    image_id: int
    original_size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    path: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the current image."""
        return self.image.shape[-2], self.image.shape[-1]

    @property
    def box_sets(self) -> tuple[BoxSet, ...]:
        """All box sets, targets first, for geometric operations."""
        return (self.targets, *self.teachers)

    def with_box_sets(self, sets: tuple[BoxSet, ...]) -> Sample:
        """A copy with ``box_sets`` replaced."""
        return replace(self, targets=sets[0], teachers=sets[1:])


def as_sample(image: Tensor) -> Sample:
    """An image without boxes, uint8 (3, H, W), for the steps of ``augment``."""
    size = image.shape[-2], image.shape[-1]
    return Sample(image=image, targets=BoxSet.empty(), image_id=0, original_size=size)
