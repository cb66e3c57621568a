"""All quantities of the two-stage auxiliary head alone, under their official names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import nn

from codetr.boxes import cxcywh_to_xyxy
from codetr.structures import Batch, Pyramid
from codetr.supervision.aux_heads.dense import DensePredictions
from codetr.supervision.aux_heads.matched import boxes_xyxy_px
from tools.parity.head_values import HeadRun, outputs
from tools.parity.rules import fixed_permutation
from tools.parity.values import Values, anchor_samples, classified, detections, proposals, sampled


def run_regions(head: nn.Module, pyramid: Pyramid, batch: Batch) -> HeadRun:
    """The two-stage head, with the fixed permutation for randomness."""
    with mock.patch.object(torch, "randperm", fixed_permutation):
        output = head(pyramid, batch)
    return HeadRun(head=head, pyramid=pyramid, batch=batch, predictions=None, output=output)


@torch.no_grad()
def rcnn_values(run: HeadRun) -> Values:
    """Both stages: raw outputs, proposals, samples, regions, detections and queries."""
    with mock.patch.object(torch, "randperm", fixed_permutation):
        first = run.head.rpn(run.pyramid, run.batch.images)
        with mock.patch.object(run.head.rpn, "forward", return_value=first):
            found = run.head.predict(run.pyramid, run.batch.images)
            return {
                **_first_stage(run, first),
                **detections("det{}", found),
                **_regions(run, first),
                **_queries(run),
            }


def _first_stage(run: HeadRun, first: Any) -> Values:
    head, images = run.head, run.batch.images
    raw = DensePredictions(logits=first.logits[..., None], regression=first.deltas)
    said = outputs(replace(run, predictions=raw), "")
    values = {name.replace("out/", "out/rpn_"): maps for name, maps in said.items()}
    found = head.rpn.proposals(first, images.sizes, head.rpn.inference_selection)
    return {
        **values,
        **proposals("test{}", found),
        **anchor_samples(head, first, run.batch.targets),
    }


def _regions(run: HeadRun, first: Any) -> Values:
    head, targets = run.head, run.batch.targets
    found = head.rpn.proposals(first, run.batch.images.sizes, head.rpn.training_selection)
    values = proposals("train{}", found)
    for b, (one, target) in enumerate(zip(found, targets, strict=True)):
        truth = boxes_xyxy_px(target.boxes, target)
        assigned = torch.cat([torch.arange(len(truth)), head.assigner(one.boxes, truth)])
        chosen = head.sampler(assigned)
        values[f"roi{b}_pos_idx"] = chosen.positive
        values[f"roi{b}_pos_gt"] = assigned[chosen.positive]
        values[f"roi{b}_neg_idx"] = chosen.negative
    regions = head.sample([p.boxes for p in found], targets)
    values |= sampled("roi_", regions)
    return values | classified(head, run.pyramid, [r.boxes for r in regions])


def _queries(run: HeadRun) -> Values:
    found, sizes = run.output.candidates, [t.size_whwh for t in run.batch.targets]
    pairs = list(zip(found, sizes, strict=True))
    return {
        "query/coords": torch.stack([cxcywh_to_xyxy(c.boxes * size) for c, size in pairs]),
        "query/targets": torch.stack([cxcywh_to_xyxy(c.targets * size) for c, size in pairs]),
        "query/labels": torch.stack([c.labels for c in found]),
        "query/mean_feats": torch.stack([c.features for c in found]),
    }
