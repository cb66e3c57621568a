"""Which annotated boxes and images a recipe trains on. Evaluation always uses all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from codetr.data.annotations import CocoAnnotations


class GroundTruthFilter(Protocol):
    """A recipe's filter. Crowd regions and boxes without area in their image are never targets."""

    def boxes(self, annotations: CocoAnnotations) -> Tensor:
        """(A,) bool: the annotations that may be targets."""
        ...

    def images(self, annotations: CocoAnnotations) -> Tensor:
        """(I,) bool: the images that are trained on."""
        ...


@dataclass(frozen=True)
class DetrFilter:
    """Keeps everything that has an area within its image (DETR, arXiv 2005.12872, and its
    descendants H-DETR, MS-DETR and DINO).
    """

    def boxes(self, annotations: CocoAnnotations) -> Tensor:
        """See ``GroundTruthFilter``."""
        return torch.ones(len(annotations.labels), dtype=torch.bool)

    def images(self, annotations: CocoAnnotations) -> Tensor:
        """See ``GroundTruthFilter``."""
        return torch.ones(len(annotations), dtype=torch.bool)


@dataclass(frozen=True)
class MmdetFilter:
    """The rules of mmdet 2's ``CocoDataset``, with ``filter_empty_gt=False`` as in Co-DETR's
    recipes: images without boxes stay.

    Drops boxes that are marked ``ignore``, whose ``area`` is not above 0, or with a side below
    ``min_box_px`` (before clipping to the image), and images whose shorter side is below
    ``min_image_px``.
    """

    min_box_px: float = 1.0
    min_image_px: int = 32

    def boxes(self, annotations: CocoAnnotations) -> Tensor:
        """See ``GroundTruthFilter``."""
        large = (annotations.sides >= self.min_box_px).all(dim=1)
        return large & (annotations.area > 0) & ~annotations.ignore

    def images(self, annotations: CocoAnnotations) -> Tensor:
        """See ``GroundTruthFilter``."""
        return annotations.sizes.amin(dim=1) >= self.min_image_px
