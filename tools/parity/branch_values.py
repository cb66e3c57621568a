"""All quantities of the detector's mask branch under their official names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from codetr.models.masks import MaskBranch, MaskPredictions
from codetr.models.masks.refine import REFINED_FROM, refined
from codetr.models.ops.roi_pool import pool_rois, roi_levels, with_image
from codetr.structures import Decoded, Detections, ImageInfo, Memory, Pyramid, Targets
from codetr.supervision.aux_heads.regions import Regions
from codetr.supervision.criteria.refined_masks import iou_targets, visible_shares
from codetr.supervision.mask_targets import mask_targets
from tools.parity.case import Case
from tools.parity.mask_values import original_infos

Values = dict[str, Tensor]


def trained_regions(
    branch: MaskBranch,
    pyramid: Pyramid,
    regions: Sequence[Regions],
    said: MaskPredictions,
    targets: Sequence[Targets],
) -> Values:
    """The positive ``regions`` of a training step, what the branch ``said`` of them, and what it
    should have.
    """
    boxes = [r.positive_boxes for r in regions]
    numbers = [r.target for r in regions]
    truth = mask_targets(targets, boxes, numbers, [s.shape[-1] for s in said.stages])
    visible = visible_shares(targets, boxes, numbers)
    return {
        "mask_rois": with_image(boxes),
        "mask_labels": torch.cat([r.positive_labels for r in regions]),
        "mask_assigned_gt": torch.cat(numbers),
        "mask_level": roi_levels(torch.cat(boxes), pyramid.strides[0], len(pyramid.maps)),
        "mask_feats": pool_rois(pyramid, boxes, branch.head.roi_size),
        **{f"stage{i}_logits": logits for i, logits in enumerate(said.stages)},
        **{f"stage{i}_targets": target > 0 for i, target in enumerate(truth)},
        "mask_iou_targets": iou_targets(said.stages[REFINED_FROM], truth[REFINED_FROM], visible),
        "mask_area_ratios": visible,
    }


def found_masks(
    branch: MaskBranch, memory: Memory, found: Sequence[Detections], infos: Sequence[ImageInfo]
) -> Values:
    """The masks of ``found``, in pixels of the original images, all images in one batch (officially
    one at a time).
    """
    pyramid = memory.pyramid()
    detail = branch.head.detail(pyramid.maps[0])
    values: Values = {}
    for b, (one, info) in enumerate(zip(branch(memory, found, infos), infos, strict=True)):
        assert one.cells is not None
        scaled = one.boxes_xyxy_px * one.boxes_xyxy_px.new_tensor(info.scale * 2)
        boxes = [scaled if i == b else scaled[:0] for i in range(len(infos))]
        said = branch.predict(pyramid, boxes, one.labels, detail)
        bits = one.bitmaps(info.original_size)
        values |= {
            f"mask{b}_score": one.cells.scores,
            f"mask{b}_bits": bits,
            f"mask{b}_area": bits.sum(dim=(1, 2)),
            f"mask{b}_final_logits": refined(said.stages),
            f"mask{b}_iou_pred": said.iou,
            **{f"mask{b}_stage{i}_logits": logits for i, logits in enumerate(said.stages)},
        }
    return values


def evaluated_branch(case: Case, memory: Memory, found: Sequence[Detections]) -> Values:
    """The masks of a whole detector's detections ``found``, in pixels of the network's input:
    pasted there, or into the original images where the recorded run did so.
    """
    branch, recorded = case.detector.mask_branch, case.recorded
    infos = case.batch.infos
    height, width = recorded.arrays.get("eval/mask0_bits", torch.zeros(0, 0, 0)).shape[1:]
    width = recorded.packed.get("eval/mask0_bits", width)
    if (height, width) != infos[0].original_size and "ori_shapes" in recorded.info.get("eval", {}):
        infos = original_infos(case)
    scaled = [
        one.boxes_xyxy_px / one.boxes_xyxy_px.new_tensor(info.scale * 2)
        for one, info in zip(found, infos, strict=True)
    ]
    moved = [
        Detections(boxes_xyxy_px=boxes, scores=one.scores, labels=one.labels)
        for boxes, one in zip(scaled, found, strict=True)
    ]
    return found_masks(branch, memory, moved, infos)


def trained_branch(case: Case, memory: Memory, decoded: Mapping[str, Decoded]) -> Values:
    """Of a whole detector's training step, computed again; the fixed draws must be in place."""
    branch: Any = case.detector.mask_branch
    targets, pyramid = case.batch.targets, memory.pyramid()
    regions = case.schemes["masks"].regions(decoded, targets, case.detector.num_classes)
    boxes = [r.positive_boxes for r in regions]
    labels = torch.cat([r.positive_labels for r in regions])
    said = branch.predict(pyramid, boxes, labels, branch.head.detail(pyramid.maps[0]))
    return trained_regions(branch, pyramid, regions, said, targets)
