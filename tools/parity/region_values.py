"""Quantities of the two-stage auxiliary head by official name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from codetr.boxes import cxcywh_to_xyxy
from codetr.models.ops.roi_pool import with_image
from codetr.structures import Batch, Images, Pyramid
from codetr.supervision.aux_heads.dense import DensePredictions
from codetr.supervision.aux_heads.matched import Regions, true_boxes
from tools.parity.head_values import HeadRun
from tools.parity.rules import fixed_permutation
from tools.parity.values import Values, branch_maps, detections, numbered, scored


def run_regions(head: nn.Module, pyramid: Pyramid, batch: Batch) -> HeadRun:
    """A training step of the head alone, with the fixed permutation as randomness."""
    with mock.patch.object(torch, "randperm", fixed_permutation):
        output = head(pyramid, batch)
    return HeadRun(head=head, pyramid=pyramid, batch=batch, predictions=None, output=output)


@torch.no_grad()
def rcnn_values(run: HeadRun) -> Values:
    """Both stages, detections and queries of the head alone."""
    head, pyramid, batch = run.head, run.pyramid, run.batch
    first = head.rpn(pyramid, batch.images)
    with (
        mock.patch.object(torch, "randperm", fixed_permutation),
        mock.patch.object(head.rpn, "forward", return_value=first),
    ):
        stage = first_stage(head, pyramid, batch.images, "test{}")
        maps = {f"out/{name}": value for name, value in stage.items() if "proposals" not in name}
        values, _ = trained(head, pyramid, batch, "train{}")
        found = detections("det{}", head.predict(pyramid, batch.images))
    return stage | maps | values | found | _queries(run)


def first_stage(head: Any, pyramid: Pyramid, images: Images, name: str = "rpn{}") -> Values:
    """Raw outputs ``rpn_cls0`` ... and the proposals at inference."""
    first = head.rpn(pyramid, images)
    raw = DensePredictions(logits=first.logits[..., None], regression=first.deltas)
    found = head.rpn.proposals(first, images.sizes, head.rpn.inference_selection)
    return branch_maps("rpn_", raw, pyramid) | _proposals(name, found)


def trained(
    head: Any, pyramid: Pyramid, batch: Batch, name: str = "rpn{}"
) -> tuple[Values, Sequence[Regions]]:
    """Sampled anchors, proposals, and the second stage's outputs on the sampled regions of a
    training step; and these regions.
    """
    first, targets = head.rpn(pyramid, batch.images), batch.targets
    found = head.rpn.proposals(first, batch.images.sizes, head.rpn.training_selection)
    values = _proposals(name, found)
    for b, (one, truth) in enumerate(zip(found, true_boxes(targets), strict=True)):
        (anchors,) = head.rpn.sampler([head.rpn.assign(first.anchors, b, truth)])
        values[f"rpn{b}_sampled_anchor_idx"] = anchors.index.sort().values
        values[f"rpn{b}_positive_anchor_idx"] = anchors.positive
        assigned = torch.cat([torch.arange(len(truth)), head.assigner(one.boxes, truth)])
        (chosen,) = head.sampler([assigned])
        values[f"roi{b}_pos_idx"] = chosen.positive
        values[f"roi{b}_pos_gt"] = assigned[chosen.positive]
        values[f"roi{b}_neg_idx"] = chosen.negative
    regions = head.sample([one.boxes for one in found], targets)
    boxes = [one.boxes for one in regions]
    features = head.pool(pyramid, boxes)
    logits, deltas = head.classify(features)
    values |= counts("roi_", regions)
    return values | {
        "roi_rois": with_image(boxes),
        "roi_feats": features,
        "roi_cls_score": logits,
        "roi_bbox_pred": deltas.flatten(1),
    }, regions


def counts(name: str, regions: Sequence[Regions]) -> Values:
    """Numbers of positive and negative regions per image."""
    positive = torch.tensor([len(one.target) for one in regions])
    size = torch.tensor([len(one) for one in regions])
    return {f"counts/{name}pos": positive, f"counts/{name}neg": size - positive}


def with_masks(regions: Sequence[Regions]) -> tuple[list[Tensor], list[Tensor], Values]:
    """Boxes and object indices of the positive regions, the ones with masks, and their recorded
    values.
    """
    boxes, objects = [one.positive_boxes for one in regions], [one.target for one in regions]
    return (
        boxes,
        objects,
        {
            "mask_rois": with_image(boxes),
            "mask_labels": torch.cat([one.positive_labels for one in regions]),
            "mask_assigned_gt": torch.cat(objects),
        },
    )


def _proposals(name: str, images: Iterable[Any]) -> Values:
    return numbered(f"{name}_proposals", (scored(one.boxes, one.scores) for one in images))


def _queries(run: HeadRun) -> Values:
    found, sizes = run.output.candidates, [t.size_whwh for t in run.batch.targets]
    pairs = list(zip(found, sizes, strict=True))
    return {
        "query/coords": torch.stack([cxcywh_to_xyxy(c.boxes * size) for c, size in pairs]),
        "query/targets": torch.stack([cxcywh_to_xyxy(c.targets * size) for c, size in pairs]),
        "query/labels": torch.stack([c.labels for c in found]),
        "query/mean_feats": torch.stack([c.features for c in found]),
    }
