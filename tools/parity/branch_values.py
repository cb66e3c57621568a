"""All quantities of the detector's mask branch under their official names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from codetr.supervision.criteria.refined_masks import (
    iou_targets,
    stage_losses,
    visible_shares,
)
from codetr.supervision.mask_targets import mask_targets
from codetr.training.branches import in_original
from tools.parity.case import Case
from tools.parity.mask_values import has_original_sizes, original_infos
from tools.parity.probe import probe
from tools.parity.recorded import Recorded
from tools.parity.region_values import counts, with_masks
from tools.parity.values import Values, scored


@contextmanager
def samples_of(sampler: Any) -> Iterator[list[Sample]]:
    """Collect what ``sampler`` draws inside the context, image by image."""
    chosen: list[Sample] = []
    draw = type(sampler).__call__

    def remember(self: Any, assigned: Sequence[Tensor]) -> list[Sample]:
        drawn: list[Sample] = draw(self, assigned)
        if self is sampler:
            chosen.extend(drawn)
        return drawn

    with mock.patch.object(type(sampler), "__call__", remember):
        yield chosen


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
        **{f"mask{b}_pos_idx": sample.positive for b, sample in enumerate(samples)},
        **regional,
        "mask_level": levels,
        "mask_feats": pool_rois(pyramid, boxes, branch.head.roi_size),
        **{f"stage{i}_logits": logits for i, logits in enumerate(said.stages)},
        **{f"stage{i}_targets": target > 0 for i, target in enumerate(truth)},
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
    head = branch.head
    parts: dict[str, Any] = {"own": head.instance_convs, "detail": head.semantic_convs}
    parts |= {f"stage{i}": stage for i, stage in enumerate(head.stages)}
    parts |= {f"reduce{i}": stage.reduce for i, stage in enumerate(head.stages)}
    parts |= {"iou": branch.scoring}
    with probe(parts) as seen:
        said = branch.predict(pyramid, boxes, labels, head.detail(pyramid.maps[0]))
    hidden = [seen.outputs["own"][0], seen.outputs["detail"][0]]
    for i in range(len(head.stages)):
        output = seen.outputs[f"stage{i}"][0]
        hidden += [_as_handed_on(output, i, head), seen.outputs[f"reduce{i}"][0].relu()]
    values = {f"hidden{i}": value for i, value in enumerate(hidden)}
    return said, values | {"mask_iou_pred": seen.outputs["iou"][0]}


def _as_handed_on(output: Tensor, stage: int, head: Any) -> Tensor:
    """A stage's output, resized to the input of the next one."""
    if stage == len(head.stages) - 1:
        return output
    size = head.sizes[stage + 1]
    return F.interpolate(output, (size, size), mode="bilinear", align_corners=False)


def found_masks(
    branch: MaskBranch, memory: Memory, found: Sequence[Detections], infos: Sequence[ImageInfo]
) -> Values:
    """The masks of ``found`` in pixels of the original images. All images are one batch here; the
    official code runs one at a time.
    """
    pyramid = memory.pyramid()
    detail = branch.head.detail(pyramid.maps[0])
    values: Values = {}
    for b, (one, info) in enumerate(zip(branch(memory, found, infos), infos, strict=True)):
        assert one.cells is not None
        scaled = one.boxes_xyxy_px * one.boxes_xyxy_px.new_tensor(info.scale * 2)
        said = [
            branch.predict(
                pyramid, [part if i == b else part[:0] for i in range(len(infos))], labels, detail
            )
            for part, labels in zip(
                scaled.split(branch.block), one.labels.split(branch.block), strict=True
            )
        ]
        stages = tuple(map(torch.cat, zip(*(part.stages for part in said), strict=True)))
        bits = one.bitmaps(info.original_size)
        values |= {
            f"mask{b}_score": one.cells.scores,
            f"mask{b}_bits": bits,
            f"mask{b}_area": bits.sum(dim=(1, 2)),
            f"mask{b}_final_logits": refined(stages),
            f"mask{b}_iou_pred": torch.cat([part.iou for part in said]),
            **{f"mask{b}_stage{i}_logits": logits for i, logits in enumerate(stages)},
        }
    return values


def evaluated_branch(case: Case, memory: Memory, found: Sequence[Detections]) -> Values:
    """The masks of a whole detector's detections ``found``, pasted into the network's input, or
    into the original images if the recorded run did so. The recorded boxes may be in pixels of
    either.
    """
    recorded, infos, values = case.recorded, case.batch.infos, {}
    height = recorded.arrays.get("eval/mask0_bits", torch.zeros(0, 0, 0)).shape[1]
    if height != infos[0].original_size[0] and has_original_sizes(recorded):
        infos = original_infos(recorded, infos)
    moved = in_original(found, infos)
    for b, pair in enumerate(zip(found, moved, strict=True)):
        near = min(pair, key=partial(_distance, recorded, b))
        values[f"det{b}_boxes_scores"] = scored(near.boxes_xyxy_px, near.scores)
    return values | found_masks(case.detector.mask_branch, memory, moved, infos)


def _distance(recorded: Recorded, image: int, found: Detections) -> float:
    """Largest difference between the recorded boxes of an image and ``found``."""
    stored = recorded.arrays.get(f"eval/det{image}_boxes_scores")
    if stored is None or stored.shape != (len(found), 5):
        return 0.0
    return float((torch.from_numpy(stored)[:, :4] - found.boxes_xyxy_px).abs().max())


def trained_branch(case: Case, memory: Memory, decoded: Mapping[str, Decoded]) -> Values:
    """Values of a whole detector's training step, computed again. Call it within
    ``without_randomness``.
    """
    targets, scheme = case.batch.targets, case.schemes["masks"]
    with samples_of(scheme.sampler) as samples:
        regions = scheme.regions(decoded, targets, case.detector.num_classes)
    _, values = trained_regions(
        case.detector.mask_branch, memory.pyramid(), regions, samples, targets
    )
    return values
