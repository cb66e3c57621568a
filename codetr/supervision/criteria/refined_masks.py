"""Losses of masks that are refined in stages, and of their scores.

Zhang et al. 2021 (RefineMask), section 3.3; Huang et al. 2019 (Mask Scoring R-CNN), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr.models.masks.boundary import boundary, enlarged, enlarged_region
from codetr.models.masks.refine import REFINED_FROM
from codetr.structures import Targets
from codetr.supervision.mask_targets import true_masks

LEARNED_WIDTH, PREDICTED_WIDTH = 2, 1
"""How far a boundary reaches to either side, in cells: where it is learned, and where predicted."""
_EPS = 1e-7


def stage_losses(stages: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """Binary cross-entropy of every stage, from ``stages``, logits (R, S, S), and ``targets`` of
    0 and 1 of the same shapes: the mean over the cells of all regions, from the stage after
    ``REFINED_FROM`` on only over those at the boundary of the stage before, as predicted or true.
    """
    losses = []
    predicted = _on(stages[0])  # of the stage before, at its size
    for number, (logits, target) in enumerate(zip(stages, targets, strict=True)):
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if number <= REFINED_FROM:
            losses.append(entropy.sum() / max(entropy.numel(), 1))
            predicted = _on(logits)
            continue
        size, before = logits.shape[-1], targets[number - 1]
        edge = boundary(predicted, LEARNED_WIDTH) | boundary(before, LEARNED_WIDTH)
        region = enlarged_region(edge, size)
        losses.append((entropy * region).sum() / region.sum().clamp(min=1))
        fine = enlarged_region(boundary(predicted, PREDICTED_WIDTH), size)
        predicted = _on(torch.where(fine, logits, enlarged(stages[number - 1], size)))
    return losses


def _on(logits: Tensor) -> Tensor:
    return logits.detach().sigmoid() >= 0.5


def iou_targets(logits: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """(R,) IoU of masks with their objects: of the cells where the probability of ``logits``
    (R, S, S) is above 0.5 with those of ``target`` (R, S, S) of 0 and 1, which contains the
    share ``visible`` (R,) of the object. 0 where both are empty.
    """
    mask = (logits.detach() > 0).to(target.dtype)
    inside = target.sum(dim=(1, 2))
    overlap = (mask * target).sum(dim=(1, 2))
    whole = inside / (visible + _EPS)
    union = mask.sum(dim=(1, 2)) + whole - overlap
    return overlap / union.where(union > 0, 1.0)


def iou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of ``predicted`` (R,) over the regions whose ``target`` (R,) is above 0;
    0 where there are none.
    """
    counted = target > 0
    # what is left out must not reach the gradient either, where 0 times NaN is NaN
    wrong = (predicted - target).where(counted, 0.0).square()
    return wrong.sum() / counted.sum().clamp(min=1)


def visible_shares(
    targets: Sequence[Targets], boxes: Sequence[Tensor], assigned: Sequence[Tensor]
) -> Tensor:
    """(R,) what share of the pixels of object ``assigned[b]`` (R_b,) lies in ``boxes[b]`` (R_b, 4)
    xyxy px, whose corners are truncated to whole pixels; at least one pixel wide and high.
    """
    return torch.cat(
        [
            _visible(true_masks(target), box, row)
            for target, box, row in zip(targets, boxes, assigned, strict=True)
        ]
    )


def _visible(masks: Tensor, boxes: Tensor, assigned: Tensor) -> Tensor:
    if not len(masks):
        return boxes.new_zeros(0)
    height, width = masks.shape[-2:]
    # (N, H, W) how many pixels of a column lie above the end of a row: of each box two rows are
    # read, whose difference is what its rows have in every column
    above = masks.cumsum(1, dtype=torch.int32)
    low = boxes.detach()[:, :2].clamp(min=0).long()
    high = torch.maximum(boxes.detach()[:, 2:].clamp(min=0).long(), low + 1)
    (x0, y0), (x1, y1) = (
        (corner[:, 0].clamp(max=width), corner[:, 1].clamp(max=height)) for corner in (low, high)
    )
    in_rows = above[assigned, y1 - 1] - above[assigned, (y0 - 1).clamp(min=0)] * (y0 > 0)[:, None]
    column = torch.arange(width, device=boxes.device)
    in_columns = (column >= x0[:, None]) & (column < x1[:, None])
    inside, area = (in_rows * in_columns).sum(dim=1), above[:, -1].sum(dim=1)[assigned]
    return inside.to(boxes.dtype) / (area.to(boxes.dtype) + _EPS)
