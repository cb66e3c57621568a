"""Quantities of a training step of Co-DETR by official name (``train/...``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from codetr.boxes import logit
from codetr.models.detectors.grouping import attention_mask
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Batch, Candidates, Decoded, Pyramid, QueryGroup
from codetr.supervision.schemes.positives import count_positives, positive_group
from tools.parity.branch_values import trained_branch
from tools.parity.case import Case
from tools.parity.mask_values import trained_masks
from tools.parity.region_values import trained
from tools.parity.rules import fixed_permutation
from tools.parity.step import Step
from tools.parity.values import Values, at_positives, branch_maps, positives

DENOISING = "denoising"
MASKS = "masks"


def without_randomness(case: Case) -> list[AbstractContextManager[Any]]:
    """Random draws as in the recorded runs: a fixed permutation, and denoising without noise."""
    noise = ("label_noise", "box_noise") if DENOISING in case.schemes else ()
    return [
        mock.patch.object(torch, "randperm", fixed_permutation),
        *(mock.patch.object(case.schemes[DENOISING], name, 0.0) for name in noise),
    ]


@torch.no_grad()
def training_values(case: Case, step: Step) -> Values:
    """Queries, predictions and assignments of ``step``. Heads are computed again: call it within
    ``without_randomness``.
    """
    values = _main(step.decoded) | _denoising(step.decoded)
    if MASKS in case.schemes:
        values |= trained_branch(case, step.memory, step.decoded)
    if case.heads:
        values |= _heads(case, step)
    return {n if n.startswith("counts/") else f"train/{n}": v for n, v in values.items()}


def _heads(case: Case, step: Step) -> Values:
    """The auxiliary heads, and the queries made from their positives."""
    pyramid = case.schemes["collaborative"].auxiliary_pyramid(step.memory)
    counts = [len(step.decoded[f"positive_{name}"].group) for name in case.heads]
    values: Values = {"counts/aux_num": torch.tensor(counts)}
    for number, (name, part) in enumerate(case.heads.items()):
        output = part(pyramid, case.batch)
        answer = step.decoded[f"positive_{name}"]
        values |= _positives(f"aux{number}", answer, case, output.candidates)
    if "rcnn" in case.heads:
        head: Any = case.heads["rcnn"]
        found, regions = trained(head, pyramid, case.batch)
        values |= found
        if head.mask_head is not None:
            values |= trained_masks(case, head, pyramid, regions)
    if "atss" in case.heads:
        values |= _atss(case.heads["atss"], pyramid, case.batch)
    return values


def _stacked(answer: Decoded) -> tuple[Tensor, Tensor]:
    """Logits and boxes of all layers (layers, B, Q, ...)."""
    return (
        torch.stack([layer.logits for layer in answer.layers]),
        torch.stack([layer.boxes for layer in answer.layers]),
    )


def _main(decoded: Mapping[str, Decoded]) -> Values:
    """Predictions of all queries, denoising ones first, as in the official code."""
    groups = [decoded[name] for name in (DENOISING, MAIN) if name in decoded]
    logits, boxes = zip(*(_stacked(answer) for answer in groups), strict=True)
    proposals = decoded[MAIN].proposals
    assert proposals is not None
    return {
        "all_cls_scores": torch.cat(logits, dim=2),
        "all_bbox_preds": torch.cat(boxes, dim=2),
        "topk_anchor": proposals.boxes,
    }


def _denoising(decoded: Mapping[str, Decoded]) -> Values:
    if DENOISING not in decoded:
        return {}
    group = decoded[DENOISING].group
    mask = attention_mask([group, decoded[MAIN].group])
    assert mask is not None
    return {
        "dn_label_query": group.queries.content,
        "dn_bbox_query": logit(group.queries.anchors, 1e-3),
        "dn_attn_mask_packed": torch.from_numpy(np.packbits(~mask.numpy(), axis=1)),
    }


def _positives(name: str, answer: Decoded, case: Case, candidates: Sequence[Candidates]) -> Values:
    group, classes = answer.group, case.detector.num_classes
    assignment = group.assignment
    assert assignment is not None
    anchors = group.queries.anchors
    labels = torch.full(anchors.shape[:2], classes)
    targets = torch.zeros_like(anchors)
    where = (assignment.image, assignment.query)
    labels[where] = torch.cat([t.labels for t in group.targets])[assignment.target]
    targets[where] = torch.cat([t.boxes for t in group.targets])[assignment.target]
    logits, boxes = _stacked(answer)
    values = {
        "coords": anchors,
        "labels": labels,
        "targets": targets,
        "label_weights": torch.ones_like(labels),
        "bbox_weights": labels < classes,
        "feats": _features(case, candidates),
        "cls": logits,
        "box": boxes,
        "dec_query": group.queries.content,
        "dec_ref": anchors,
    }
    if group.queries.position is not None:
        values["dec_query_pos"] = group.queries.position
    return {f"{name}_{key}": value for key, value in values.items()}


def _features(case: Case, candidates: Sequence[Candidates]) -> Tensor:
    """Features of the selected candidates, by means of an identity embedding."""
    scheme, num_classes = case.schemes["collaborative"], case.detector.num_classes
    (counts,) = count_positives([candidates], num_classes)
    group: QueryGroup = positive_group(
        "features",
        candidates,
        [t.size for t in case.batch.targets],
        num_classes,
        lambda boxes, features: (features, None),
        (scheme.min_queries, scheme.max_queries),
        counts,
    )
    return group.queries.content


def _atss(head: Any, pyramid: Pyramid, batch: Batch) -> Values:
    anchors, said = head.grid(pyramid, batch.images.padded_sizes), head.predictions(pyramid)
    wanted = head.targets(head.assign(said, anchors, batch), anchors, batch)
    return {
        "counts/atss_pos": wanted.positive.sum(dim=1),
        **branch_maps("atss_", said, pyramid, "ctr"),
        **positives("atss{}", wanted, anchors.boxes),
        **at_positives("atss{}_pos_target", wanted, wanted.boxes_px),
    }
