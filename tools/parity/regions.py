"""Quantities of the two-stage auxiliary head by official name: proposals, sampled regions, and
their masks if it has a mask head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from codetr.boxes import at_least_float32, cxcywh_to_xyxy
from codetr.masks import probability
from codetr.models.ops.roi_pool import roi_levels, with_image
from codetr.structures import Batch, Detections, Images, Pyramid, Targets
from codetr.supervision.assigners.sampling import Sample
from codetr.supervision.aux_heads import AuxOutput
from codetr.supervision.aux_heads.dense import DensePredictions
from codetr.supervision.aux_heads.matched import Regions, true_boxes
from codetr.supervision.mask_targets import mask_shares, mask_targets, true_masks
from codetr.training.branches import in_original
from tools.parity.case import Case
from tools.parity.values import Values, bitmaps, branch_maps, detections, numbered, scored


@torch.no_grad()
def rcnn_values(head: Any, pyramid: Pyramid, batch: Batch, output: AuxOutput) -> Values:
    """Both stages, detections and queries of the head alone."""
    stage = first_stage(head, pyramid, batch.images, "test{}")
    sizes = [target.size_whwh for target in batch.targets]
    queries = list(zip(output.candidates, sizes, strict=True))
    return {
        **stage,
        **{f"out/{name}": value for name, value in stage.items()},
        **trained(head, pyramid, batch, "train{}")[0],
        **detections("det{}", head.predict(pyramid, batch.images)),
        "query/coords": torch.stack([cxcywh_to_xyxy(c.boxes * size) for c, size in queries]),
        "query/targets": torch.stack([cxcywh_to_xyxy(c.targets * size) for c, size in queries]),
        "query/labels": torch.stack([c.labels for c, _ in queries]),
        "query/mean_feats": torch.stack([c.features for c, _ in queries]),
    }


def first_stage(head: Any, pyramid: Pyramid, images: Images, name: str = "rpn{}") -> Values:
    """Raw outputs ``rpn_cls0`` ... and the proposals at inference."""
    first = head.rpn(pyramid, images)
    raw = DensePredictions(logits=first.logits[..., None], regression=first.deltas)
    found = head.rpn.proposals(first, images.sizes, head.rpn.inference_selection)
    return branch_maps("rpn_", raw, pyramid) | _proposals(name, found)


def _proposals(name: str, images: Iterable[Any]) -> Values:
    return numbered(f"{name}_proposals", (scored(one.boxes, one.scores) for one in images))


def trained(
    head: Any, pyramid: Pyramid, batch: Batch, name: str = "rpn{}"
) -> tuple[Values, Sequence[Regions]]:
    """Sampled anchors, proposals, and the second stage's outputs on the sampled regions of a
    training step; and these regions.
    """
    first, targets = head.rpn(pyramid, batch.images), batch.targets
    found = head.rpn.proposals(first, batch.images.sizes, head.rpn.training_selection)
    values = _proposals(name, found)
    for b, truth in enumerate(true_boxes(targets)):
        (anchors,) = head.rpn.sampler([head.rpn.assign(first.anchors, b, truth)])
        values[f"rpn{b}_sampled_anchor_idx"] = anchors.index.sort().values
        values[f"rpn{b}_positive_anchor_idx"] = anchors.positive
    with samples_of(head.sampler) as samples:
        regions = head.sample([one.boxes for one in found], targets)
    for b, (own, chosen) in enumerate(zip(regions, samples, strict=True)):
        values[f"roi{b}_pos_idx"] = chosen.positive
        values[f"roi{b}_pos_gt"] = own.target
        values[f"roi{b}_neg_idx"] = chosen.negative
    boxes = [one.boxes for one in regions]
    return values | _classified("roi_", head, pyramid, boxes) | counts("roi_", regions), regions


def _classified(name: str, head: Any, pyramid: Pyramid, boxes: list[Tensor]) -> Values:
    """Features and raw outputs of regions, by the names of training and of evaluation."""
    features = head.pool(pyramid, boxes)
    logits, deltas = head.classify(features)
    parts = {"rois": with_image(boxes), "feats": features}
    parts |= dict.fromkeys(("cls_score", "cls"), logits)
    parts |= dict.fromkeys(("bbox_pred", "reg"), deltas.flatten(1))
    return {f"{name}{part}": value for part, value in parts.items()}


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
    values = {
        "mask_rois": with_image(boxes),
        "mask_labels": torch.cat([one.positive_labels for one in regions]),
        "mask_assigned_gt": torch.cat(objects),
    }
    return boxes, objects, values


def trained_masks(
    head: Any, pyramid: Pyramid, regions: Sequence[Regions], targets: Sequence[Targets]
) -> Values:
    """Predictions and targets of the positive regions of a training step."""
    boxes, numbers, values = with_masks(regions)
    values |= _of_regions("", head, pyramid, boxes)
    own = head.mask_head(values["mask_feats"], values["mask_labels"])
    size = head.mask_head.mask_size
    wanted = mask_targets(targets, boxes, numbers, [size])[0] > 0
    shares = [
        mask_shares(true_masks(target), box, row, [size])[0]
        for target, box, row in zip(targets, boxes, numbers, strict=True)
    ]
    levels = torch.bincount(values["mask_level"], minlength=head.num_levels - 1)
    return values | {
        "counts/mask_pos_per_level": levels,
        "counts/mask_target_ones": wanted.sum(),
        "mask_pred_own": at_least_float32(own),
        "mask_targets": wanted,
        "mask_targets_soft": torch.cat(shares),
    }


def _of_regions(name: str, head: Any, pyramid: Pyramid, boxes: Sequence[Tensor]) -> Values:
    features, part = head.pool(pyramid, boxes, head.mask_head.roi_size), head.mask_head
    levels = roi_levels(torch.cat(list(boxes)), pyramid.strides[0], head.num_levels - 1)
    return {
        f"{name}mask_feats": features,
        f"{name}mask_pred": part.classify(part.upsample(part.convs(features)).relu()),
        f"{name}mask_level": levels,
    }


def evaluated(case: Case, head: Any, pyramid: Pyramid, main: Sequence[Detections]) -> Values:
    """Both stages, detections, and with a mask head the masks of these detections, of the query
    head's ``main``, of the true boxes and of any recorded regions. Boxes are in pixels of the
    network's input.
    """
    truth, images = true_boxes(case.batch.targets), case.batch.images
    found = head.predict(pyramid, images)
    values = {
        **first_stage(head, pyramid, images),
        **_classified("gt_roi_", head, pyramid, truth),
        **detections("roi_det{}", found),
    }
    if head.mask_head is None:
        return values
    infos, originals = case.batch.infos, case.original_infos
    rescaled = in_original(found, originals)
    values |= detections("roi_rescaled_det{}", rescaled)
    values |= _masks("query_mask", head, pyramid, main) | _masks("roi_mask", head, pyramid, found)
    with_cells = {
        "query_mask": (head.with_masks(pyramid, tuple(main)), infos),
        "roi_mask": (found, infos),
        "roi_rescaled_mask": (rescaled, originals),
    }
    for name, (detected, frames) in with_cells.items():
        for b, (one, info) in enumerate(zip(detected, frames, strict=True)):
            values |= bitmaps(f"{name}{b}", one, info)
    for b, one in enumerate(found):
        first = values[f"roi_mask{b}_logits"][:8]
        values |= dict.fromkeys(
            (f"{k}{b}_logits_first8" for k in ("roi_mask", "roi_rescaled_mask")), first
        )
        values |= _one_pasted(case, f"roi_mask{b}", one)
    return values | _of_regions("gt_", head, pyramid, truth) | _wide(case, head, pyramid)


def _masks(name: str, head: Any, pyramid: Pyramid, found: Sequence[Detections]) -> Values:
    """Features and logits of the classes of ``found``, by image."""
    features = head.pool(pyramid, [one.boxes_xyxy_px for one in found], head.mask_head.roi_size)
    logits = head.mask_head(features, torch.cat([one.labels for one in found]))
    parts = {"feats": features, "logits": logits, "logits_mean": logits.mean(dim=(1, 2))}
    sizes = [len(one) for one in found]
    return {
        f"{name}{b}_{part}": own
        for part, values in parts.items()
        for b, own in enumerate(values.split(sizes))
    }


def _one_pasted(case: Case, name: str, found: Detections) -> Values:
    """The probabilities of the recorded mask in the recorded window."""
    arrays = case.recorded.arrays
    if f"eval/{name}_paste_index" not in arrays:
        return {}
    (index,) = arrays[f"eval/{name}_paste_index"].tolist()
    window = tuple(arrays[f"eval/{name}_paste_window"].tolist())
    assert found.cells is not None
    cells, box = found.cells.probabilities[index], found.boxes_xyxy_px[index]
    return {f"{name}_paste_prob": probability(cells, box, window)}


def _wide(case: Case, head: Any, pyramid: Pyramid) -> Values:
    stored = case.recorded.arrays.get("eval/wide_rois")
    if stored is None:
        return {}
    rois = torch.from_numpy(stored).to(pyramid.maps[0].dtype)
    boxes = [rois[rois[:, 0] == b, 1:] for b in range(len(case.batch))]
    as_recorded = rois[:, 0].argsort(stable=True).argsort()
    found = _of_regions("wide_", head, pyramid, boxes)
    found |= {"wide_rois": with_image(boxes), "wide_level": found["wide_mask_level"]}
    return {name: value[as_recorded] for name, value in found.items()}
