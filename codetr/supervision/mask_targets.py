"""Targets of mask heads: the mask of a region's object, cropped to the region and resized."""

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
    targets: Sequence[Targets],
    boxes: Sequence[Tensor],
    assigned: Sequence[Tensor],
    sizes: Sequence[int],
) -> list[Tensor]:
    """For each S of ``sizes`` (R, S, S) of 0 and 1 in the type of the boxes: what of the mask of
    object ``assigned[b]`` (R_b,) of image b lies in the cells of ``boxes[b]`` (R_b, 4) xyxy px.

    A cell is 1 if at least half of it is on the object: RoIAlign of the bitmap, on boxes clipped to
    it and not rounded.
    """
    shares = [
        mask_shares(true_masks(target), box, row, sizes)
        for target, box, row in zip(targets, boxes, assigned, strict=True)
    ]
    return [
        (torch.cat(of_size) >= THRESHOLD).to(boxes[0].dtype)
        for of_size in zip(*shares, strict=True)
    ]


def mask_shares(
    masks: Tensor, boxes: Tensor, assigned: Tensor, sizes: Sequence[int]
) -> list[Tensor]:
    """For each S of ``sizes`` (R, S, S) what share of each cell of ``boxes`` (R, 4) xyxy px is on
    the object ``masks[assigned[r]]`` of ``masks`` (N, H, W). ``assigned`` (R,) int64.
    """
    if not len(masks):
        return [boxes.new_zeros(0, size, size) for size in sizes]
    height, width = masks.shape[-2:]
    # numbers of the host, not a tensor of them: its copy would wait for the device
    x, y = (boxes.detach()[:, i::2].clamp(0, side) for i, side in enumerate((width, height)))
    clipped = torch.stack([x, y], dim=-1).flatten(1)
    rois = torch.cat([assigned[:, None].to(boxes), clipped], dim=1)
    bitmaps = masks[:, None].to(boxes.dtype)
    return [align_rois(bitmaps, rois, size, 1.0).squeeze(1) for size in sizes]
