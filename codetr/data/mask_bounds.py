"""Bounding boxes of masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from codetr.data.sample import Sample


def fitted_to_masks(sample: Sample) -> Sample:
    """The sample with each target's box fitted to its mask, without targets of empty masks."""
    targets = sample.targets
    assert targets.masks is not None, "load the masks of the annotation file"
    boxes = mask_bounds(targets.masks)
    tight = replace(targets, boxes=boxes).select((boxes[:, 2:] > boxes[:, :2]).all(dim=1))
    return replace(sample, targets=tight)


def mask_bounds(masks: Tensor) -> Tensor:
    """(N, 4) float32 xyxy bounding boxes, in pixels, of ``masks`` (N, H, W) uint8 of 0 and 1, up to
    the far edge of the last pixels; zeros for an empty mask.
    """
    x0, x1 = _extent(masks.amax(dim=1))
    y0, y1 = _extent(masks.amax(dim=2))
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end (exclusive) of the 1s in every row of (N, S); zeros if there are none."""
    first = occupied.argmax(dim=1)
    end = occupied.shape[1] - occupied.flip(1).argmax(dim=1)
    some = occupied.amax(dim=1).long()
    return first * some, end * some
