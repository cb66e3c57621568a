"""Quantities that records of several kinds have, under their official names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from codetr.models.ops.roi_pool import with_image
from codetr.structures import Detections, Predictions, Pyramid, Targets
from codetr.supervision.aux_heads.matched import Regions, boxes_xyxy_px

Values = dict[str, Tensor]


def numbered(name: str, values: Iterable[Tensor]) -> Values:
    """``name`` with the number of each in place of ``{}``."""
    return {name.format(i): value for i, value in enumerate(values)}


def layers(name: str, predictions: Sequence[Predictions]) -> Values:
    """``{name}boxes`` of all layers (L, B, Q, 4), and each one's logits, ``{name}logits_l0`` ..."""
    logits = numbered(f"{name}logits_l{{}}", (layer.logits for layer in predictions))
    return {f"{name}boxes": torch.stack([layer.boxes for layer in predictions]), **logits}


def scored(boxes: Tensor, scores: Tensor) -> Tensor:
    """(n, 5) boxes with their scores."""
    return torch.cat([boxes, scores[:, None].to(boxes)], dim=1)


def detections(name: str, images: Iterable[Detections]) -> Values:
    """``{name}_boxes_scores`` (n, 5) and ``{name}_labels`` (n,); ``name`` as in ``numbered``."""
    found = list(images)
    boxes = [scored(one.boxes_xyxy_px, one.scores) for one in found]
    labels = [one.labels for one in found]
    return numbered(f"{name}_boxes_scores", boxes) | numbered(f"{name}_labels", labels)


def proposals(name: str, images: Iterable[Any]) -> Values:
    """(n, 5) of a region proposal network."""
    return numbered(f"{name}_proposals", (scored(one.boxes, one.scores) for one in images))


def anchor_samples(head: Any, first: Any, targets: Sequence[Targets]) -> Values:
    """Which anchors a region proposal network is trained on."""
    values = {}
    for b, target in enumerate(targets):
        _, sample = head.rpn.sample(first.anchors, b, boxes_xyxy_px(target.boxes, target))
        values[f"rpn{b}_sampled_anchor_idx"] = sample.index.sort().values
        values[f"rpn{b}_positive_anchor_idx"] = sample.positive
    return values


def sampled(name: str, regions: Sequence[Regions]) -> Values:
    """How many regions of each image are positive and negative, counted as ``name``."""
    positive = torch.tensor([len(one.target) for one in regions])
    size = torch.tensor([len(one) for one in regions])
    return {f"counts/{name}pos": positive, f"counts/{name}neg": size - positive}


def classified(head: Any, pyramid: Pyramid, boxes: Sequence[Tensor]) -> Values:
    """What the second stage of a two-stage ``head`` says of regions ``boxes`` (n, 4) px."""
    features = head.pool(pyramid, boxes)
    logits, deltas = head.classify(features)
    return {
        "roi_rois": with_image(boxes),
        "roi_feats": features,
        "roi_cls_score": logits,
        "roi_bbox_pred": deltas.flatten(1),
    }
