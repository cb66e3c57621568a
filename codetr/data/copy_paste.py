"""Copy-paste: objects of one image, cut out by their masks, are pasted onto another.

Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
CVPR 2021, section 3, with the rules of the official LSJ recipes (mmdet ``CopyPaste``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from codetr.boxes import pairwise_iou
from codetr.data.mask_bounds import fitted_to_masks, mask_bounds
from codetr.data.sample import BoxSet, Sample
from codetr.errors import UserError

_MATCH_IOU = 0.5
_MAX_COVERED = 0.5


@dataclass(frozen=True)
class CopyPaste:
    """Callable that pastes a random number of random objects of one sample onto another.

    Both samples have the same size and targets with masks (both have been through large-scale
    jitter). Between 0 and min(N, ``max_pasted`` - 1) of the source's N objects are pasted, without
    blending or scaling. Every box becomes the bounds of the visible part of its object. An object
    of the destination is kept if no side of its box moved by more than ``max_shift_px`` or if more
    than ``min_visible_px`` of its pixels remain, but never if it is hidden completely.

    Teachers have boxes without masks: one of the destination is removed if more than half of its
    area is pasted over; one of the source is added if it overlaps the box of a pasted object with
    an IoU of at least 0.5.

    With ``masks`` the result has the masks of the visible parts of objects.
    """

    max_pasted: int = 100
    max_shift_px: float = 10
    min_visible_px: int = 300
    masks: bool = False
    needs_masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_pasted < 1:
            raise UserError(
                f"augmentation.mix.max_pasted={self.max_pasted}: give 1 or more, or "
                "augmentation.mix=null for no copy-paste"
            )

    def draw(self, epoch: int) -> int:
        """See ``Mix``: one other image, always."""
        return 1

    def __call__(self, sample: Sample, *others: Sample) -> Sample:
        """The destination ``sample`` with objects of one source pasted onto it."""
        destination, (source,) = sample, others
        if destination.size != source.size:
            raise UserError(
                f"copy-paste got images of {destination.size} and {source.size} pixels: it needs a "
                "training augmentation that ends on a canvas (lsj_1024), or augmentation.mix=null"
            )
        destination, source = fitted_to_masks(destination), fitted_to_masks(source)
        chosen = self._choose(len(source.targets))
        if not len(chosen):
            return replace(destination, targets=self._kept(destination.targets))
        pasted = source.targets.select(chosen)
        assert pasted.masks is not None
        covered = pasted.masks.amax(dim=0)
        teachers = tuple(
            BoxSet.joined((_uncovered(below, covered), _belonging(above, pasted.boxes)))
            for below, above in zip(destination.teachers, source.teachers, strict=True)
        )
        return replace(
            destination,
            image=_pasted(source.image, destination.image, covered, pasted.boxes),
            targets=BoxSet.joined(
                (self._visible(destination.targets, covered), self._kept(pasted))
            ),
            teachers=teachers,
        )

    def _choose(self, num_objects: int) -> Tensor:
        """Indices of the objects to paste."""
        most = min(num_objects, self.max_pasted - 1)
        count = int(torch.randint(0, most + 1, ()).item())
        return torch.randperm(num_objects)[:count]

    def _visible(self, targets: BoxSet, covered: Tensor) -> BoxSet:
        """The ``targets`` that stay visible, with the bounds of their visible parts; the pixels
        ``covered`` (H, W) are pasted over.
        """
        assert targets.masks is not None
        touched = (targets.masks & covered).flatten(1).amax(dim=1).nonzero().flatten()
        masks = targets.masks.index_select(0, touched) * (1 - covered)
        boxes = mask_bounds(masks)
        stays = ((boxes - targets.boxes[touched]).abs() <= self.max_shift_px).all(dim=1)
        stays |= _areas(masks) > self.min_visible_px
        stays &= (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        keep = torch.ones(len(targets), dtype=torch.bool)
        keep[touched] = stays
        moved = targets.boxes.index_copy(0, touched, boxes)
        if self.masks:
            cut = targets.masks.index_copy(0, touched, masks)
            return replace(targets, boxes=moved, masks=cut).select(keep)
        return _without_masks(replace(targets, boxes=moved)).select(keep)

    def _kept(self, targets: BoxSet) -> BoxSet:
        return targets if self.masks else _without_masks(targets)


def _areas(masks: Tensor) -> Tensor:
    """(N,) number of nonzero pixels; numpy counts bytes many times faster than torch."""
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)


def _pasted(above: Tensor, below: Tensor, covered: Tensor, bounds: Tensor) -> Tensor:
    """(3, H, W) with the pixels of ``above`` where ``covered`` (H, W), else of ``below``. The boxes
    ``bounds`` (M, 4) enclose the covered pixels, so only the window around them is processed.
    """
    x0, y0 = bounds[:, :2].amin(dim=0).long().tolist()
    x1, y1 = bounds[:, 2:].amax(dim=0).long().tolist()
    window = (slice(None), slice(y0, y1), slice(x0, x1))
    image = below.clone(memory_format=torch.contiguous_format)
    image[window] = torch.where(covered[window[1:]].bool(), above[window], image[window])
    return image


def _uncovered(boxes: BoxSet, covered: Tensor) -> BoxSet:
    """The boxes with at most half of their area ``covered`` (H, W)."""
    height, width = covered.shape
    total = torch.nn.functional.pad(covered.int().cumsum(0).cumsum(1), (1, 0, 1, 0))
    x0, y0, x1, y1 = boxes.boxes.round().long().T
    x0, x1, y0, y1 = (
        v.clamp(0, limit) for v, limit in ((x0, width), (x1, width), (y0, height), (y1, height))
    )
    inside = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    return boxes.select(inside <= _MAX_COVERED * (x1 - x0) * (y1 - y0))


def _belonging(boxes: BoxSet, pasted: Tensor) -> BoxSet:
    """The boxes that sufficiently overlap one of the ``pasted`` boxes (M, 4)."""
    return boxes.select((pairwise_iou(boxes.boxes, pasted) >= _MATCH_IOU).any(dim=1))


def _without_masks(boxes: BoxSet) -> BoxSet:
    return replace(boxes, masks=None)
