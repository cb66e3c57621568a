"""What mask heads are to predict in a region: the mask of its object, cut out and resized."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codetr.errors import UserError
from codetr.masks import THRESHOLD
from codetr.models.ops.roi_pool import align_rois
from codetr.structures import Targets


def true_masks(targets: Targets) -> Tensor:
    """(N, H, W) uint8. Raises UserError where the data was loaded without."""
    if targets.masks is None:
        raise UserError(
            "the model learns masks but the batch has none: set data.masks=true, with annotations "
            "that have segmentations"
        )
    return targets.masks


def mask_targets(
    targets: Sequence[Targets], boxes: Sequence[Tensor], assigned: Sequence[Tensor], size: int
) -> Tensor:
    """(R, size, size) of 0 and 1 in the type of the boxes: what of the mask of object
    ``assigned[b]`` (R_b,) of image b lies in the cells of ``boxes[b]`` (R_b, 4) xyxy px.

    A cell is 1 if at least half of it is on the object: RoIAlign of the bitmap, on boxes clipped to
    it and not rounded.
    """
    shares = [
        mask_shares(true_masks(target), box, row, size)
        for target, box, row in zip(targets, boxes, assigned, strict=True)
    ]
    return (torch.cat(shares) >= THRESHOLD).to(boxes[0].dtype)


def mask_shares(masks: Tensor, boxes: Tensor, assigned: Tensor, size: int) -> Tensor:
    """(R, size, size) what share of each cell of ``boxes`` (R, 4) xyxy px is on the object
    ``masks[assigned[r]]`` of ``masks`` (N, H, W). ``assigned`` (R,) int64.
    """
    if not len(masks):
        return boxes.new_zeros(0, size, size)
    height, width = masks.shape[-2:]
    limits = boxes.new_tensor([width, height, width, height])
    clipped = torch.minimum(boxes.detach().clamp(min=0), limits)
    rois = torch.cat([assigned[:, None].to(boxes), clipped], dim=1)
    return align_rois(masks[:, None].to(boxes.dtype), rois, size, 1.0).squeeze(1)
