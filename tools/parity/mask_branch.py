"""Quantities of the detector's mask branch under their official names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr.models.masks import MaskBranch, MaskPredictions
from codetr.models.masks.refine import REFINED_FROM, refined
from codetr.models.ops.roi_pool import pool_rois, roi_levels
from codetr.structures import Decoded, Detections, ImageInfo, Memory, Pyramid, Targets
from codetr.supervision.assigners.sampling import Sample
from codetr.supervision.aux_heads.matched import Regions
from codetr.supervision.criteria.refined_masks import iou_targets, stage_losses, visible_shares
from codetr.supervision.mask_targets import mask_targets
from codetr.training.branches import in_original
from tools.parity.case import Case
from tools.parity.regions import counts, samples_of, with_masks
from tools.parity.step import probe
from tools.parity.values import Values, bitmaps, numbered, scored


def trained_branch(case: Case, memory: Memory, decoded: Mapping[str, Decoded]) -> Values:
    """Values of a whole detector's training step, computed again. Call it within
    ``as_recorded``.
    """
    targets, scheme = case.batch.targets, case.schemes["masks"]
    with samples_of(scheme.sampler) as samples:
        regions = scheme.regions(decoded, targets, case.detector.num_classes)
    pyramid, branch = memory.pyramid(), case.detector.mask_branch
    return trained_regions(branch, pyramid, regions, samples, targets)[1]


def trained_regions(
    branch: MaskBranch,
    pyramid: Pyramid,
    regions: Sequence[Regions],
    samples: Sequence[Sample],
    targets: Sequence[Targets],
) -> tuple[MaskPredictions, Values]:
    """Run the branch on the positive ``regions`` of a training step. ``samples`` is how they were
    drawn from the true and the predicted boxes.

    Returns the predictions, and all recorded values up to them, with their targets.
    """
    boxes, numbers, regional = with_masks(regions)
    said, hidden = _hidden(branch, pyramid, boxes, regional["mask_labels"])
    truth = mask_targets(targets, boxes, numbers, [s.shape[-1] for s in said.stages])
    visible = visible_shares(targets, boxes, numbers)
    levels = roi_levels(torch.cat(boxes), pyramid.strides[0], len(pyramid.maps))
    return said, {
        **hidden,
        **regional,
        **numbered("mask{}_pos_idx", (sample.positive for sample in samples)),
        "mask_level": levels,
        "mask_feats": pool_rois(pyramid, boxes, branch.head.roi_size),
        **numbered("stage{}_logits", said.stages),
        **numbered("stage{}_targets", (target > 0 for target in truth)),
        "mask_iou_targets": iou_targets(said.stages[REFINED_FROM], truth[REFINED_FROM], visible),
        "mask_area_ratios": visible,
        "counts/stage_losses_unweighted": torch.stack(stage_losses(said.stages, truth)),
        **counts("", regions),
        "counts/level": torch.bincount(levels, minlength=len(pyramid.maps)),
    }


def _hidden(
    branch: MaskBranch, pyramid: Pyramid, boxes: Sequence[Tensor], labels: Tensor
) -> tuple[MaskPredictions, Values]:
    """The predictions, the inputs and outputs of all stages with the map that each reads
    (``hidden0`` ...), and the mask scores of all classes.
    """
    head: Any = branch.head
    parts: dict[str, Any] = {"own": head.instance_convs, "detail": head.semantic_convs}
    parts |= {f"stage{i}": stage for i, stage in enumerate(head.stages)}
    parts |= {f"reduce{i}": stage.reduce for i, stage in enumerate(head.stages)}
    with probe({**parts, "iou": branch.scoring}) as seen:
        said = branch.predict(pyramid, boxes, labels, head.detail(pyramid.maps[0]))
    made = {name: outputs[0] for name, outputs in seen.outputs.items()}
    hidden = [made["own"], made["detail"]]
    for i in range(len(head.stages)):
        output = made[f"stage{i}"]
        if i + 1 < len(head.stages):  # resized to the input of the next stage
            size = head.sizes[i + 1]
            output = F.interpolate(output, (size, size), mode="bilinear", align_corners=False)
        hidden += [output, made[f"reduce{i}"].relu()]
    return said, numbered("hidden{}", hidden) | {"mask_iou_pred": made["iou"]}


def evaluated_branch(case: Case, memory: Memory, found: Sequence[Detections]) -> Values:
    """The masks of a whole detector's detections ``found``, pasted into the network's input, or
    into the original images if the recorded run did so. The recorded boxes may be in pixels of
    either.
    """
    infos, values = case.batch.infos, {}
    height = case.recorded.arrays.get("eval/mask0_bits", torch.zeros(0, 0, 0)).shape[1]
    if height != infos[0].original_size[0]:
        infos = case.original_infos
    moved = in_original(found, infos)
    for b, pair in enumerate(zip(found, moved, strict=True)):
        stored = case.recorded.arrays.get(f"eval/det{b}_boxes_scores")
        near = min(pair, key=partial(_distance, stored))
        values[f"det{b}_boxes_scores"] = scored(near.boxes_xyxy_px, near.scores)
    return values | found_masks(case.detector.mask_branch, memory, moved, infos)


def _distance(stored: Any, found: Detections) -> float:
    """Largest difference between ``stored`` (n, 5) boxes with scores of an image and ``found``."""
    if stored is None or stored.shape != (len(found), 5):
        return 0.0
    return float((torch.from_numpy(stored)[:, :4] - found.boxes_xyxy_px).abs().max())


def found_masks(
    branch: MaskBranch, memory: Memory, found: Sequence[Detections], infos: Sequence[ImageInfo]
) -> Values:
    """The masks of ``found`` in pixels of the original images, one image at a time as in the
    official code.
    """
    values: Values = {}
    said: list[MaskPredictions] = []

    def remember(*inputs: Any) -> MaskPredictions:
        said.append(MaskBranch.predict(branch, *inputs))
        return said[-1]

    with mock.patch.object(branch, "predict", remember):
        masks = branch(memory, found, infos)
    sizes = [len(one) for one in found]
    stages = enumerate(zip(*(p.stages for p in said), strict=True))
    parts: dict[str, Any] = {f"stage{i}_logits": stage for i, stage in stages}
    parts |= {"final_logits": [refined(p.stages) for p in said], "iou_pred": [p.iou for p in said]}
    for part, blocks in parts.items():
        values |= numbered(f"mask{{}}_{part}", torch.cat(list(blocks)).split(sizes))
    for b, (one, info) in enumerate(zip(masks, infos, strict=True)):
        assert one.cells is not None
        values |= {f"mask{b}_score": one.cells.scores, **bitmaps(f"mask{b}", one, info)}
    return values
