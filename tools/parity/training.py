"""All quantities of a training step under their official names: values, losses, gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from timm.layers import DropPath
from torch import Tensor

from codetr.boxes import logit
from codetr.checkpoints.official import convert_official
from codetr.loss_terms import total_loss
from codetr.models.detectors.grouping import attention_mask
from codetr.models.detectors.protocol import MAIN
from codetr.structures import Candidates, Decoded, QueryGroup
from codetr.supervision.aux_heads.matched import boxes_xyxy_px
from codetr.supervision.schemes.positives import positive_group
from codetr.training.losses import training_losses
from tools.parity.branch_values import trained_branch
from tools.parity.case import Case
from tools.parity.inference import Values, atss_outputs, scored
from tools.parity.mask_values import trained_masks
from tools.parity.rules import fixed_permutation

DENOISING = "denoising"
MASKS = "masks"
OFFICIAL_TERMS = {"cls": "loss_cls", "bbox": "loss_bbox", "giou": "loss_iou"}
HEAD_NUMBERS = {"rcnn": "0", "atss": "1"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """``losses`` weighted, by official name; ``gradients`` L2 norms by our parameters' names;
    ``decoded`` every query group with what the decoder made of it.
    """

    losses: dict[str, float]
    total: float
    gradients: dict[str, float]
    decoded: Mapping[str, Decoded]


@contextmanager
def without_randomness(case: Case) -> Iterator[None]:
    """Draws replaced as in the recorded runs: a fixed permutation, denoising without noise, no
    layer dropped.
    """
    with ExitStack() as stack:
        for module in case.detector.modules():
            if isinstance(module, DropPath):
                stack.enter_context(mock.patch.object(module, "drop_prob", 0.0))
        stack.enter_context(mock.patch.object(torch, "randperm", fixed_permutation))
        if DENOISING in case.schemes:
            for noise in ("label_noise", "box_noise"):
                stack.enter_context(mock.patch.object(case.schemes[DENOISING], noise, 0.0))
        yield


def training_step(case: Case) -> Step:
    """One step of the real training code, forward and backward."""
    case.detector.train()
    case.schemes.train()
    decode, answers = case.detector.decode, {}

    def remember(*arguments: Any) -> Mapping[str, Decoded]:
        answers.update(decode(*arguments))
        return answers

    with without_randomness(case), mock.patch.object(case.detector, "decode", remember):
        losses = training_losses(case.detector, case.schemes, case.batch)
        total = total_loss(losses)
        total.backward()  # in here: checkpointed layers are run again
    layers = case.detector.num_layers
    return Step(
        losses={
            official_loss(n, layers): float(t.value.detach()) * t.weight for n, t in losses.items()
        },
        total=float(total.detach()),
        gradients=dict(_gradient_norms(case)),
        decoded=answers,
    )


def _gradient_norms(case: Case) -> Iterator[tuple[str, float]]:
    for prefix, module in (("detector", case.detector), ("schemes", case.schemes)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                gradient = parameter.grad
                yield f"{prefix}.{name}", 0.0 if gradient is None else float(gradient.norm())


def official_loss(name: str, num_layers: int) -> str:
    """The official name of one of our losses."""
    scheme, *place, term = name.split("/")
    if scheme == MASKS:
        return f"loss_{term}"
    if scheme == "collaborative" and len(place) == 1:
        return f"loss_{term}" if term.startswith("rpn_") else f"loss_{term}{_number(place[0])}"
    term = OFFICIAL_TERMS.get(term, term)
    if place == ["encoder"]:
        return f"enc_{term}"
    index = int(place[-1].removeprefix("layer"))
    layer = "" if index == num_layers - 1 else f"d{index}."
    if scheme == DENOISING:
        return f"{layer}dn_{term}"
    if scheme == "collaborative":
        return f"{layer}{term}_aux{_number(place[0].removeprefix('positive_'))}"
    return f"{layer}{term}"


def _number(head: str) -> str:
    return HEAD_NUMBERS.get(head, f"_{head}")


def own_names(official: str, shape: Sequence[int], heads: Sequence[str]) -> tuple[str, ...]:
    """Our parameters that hold the official parameter ``official``."""
    return tuple(convert_official({official: torch.zeros(tuple(shape))}, heads).state)


@torch.no_grad()
def training_values(case: Case, step: Step) -> Values:
    """Queries, predictions and assignments of ``step``; the heads' parts are computed again."""
    values = _main(step.decoded) | _denoising(step.decoded)
    if case.heads or MASKS in case.schemes:
        with without_randomness(case):
            memory = case.detector.encode(case.batch.images)
            if MASKS in case.schemes:
                values |= trained_branch(case, memory, step.decoded)
    if case.heads:
        scheme = case.schemes["collaborative"]
        with without_randomness(case):
            pyramid = scheme.auxiliary_pyramid(memory)
            for number, (name, head) in enumerate(case.heads.items()):
                output = head(pyramid, case.batch)
                answer = step.decoded[f"positive_{name}"]
                values |= _positives(f"aux{number}", answer, case, output.candidates)
            if "rcnn" in case.heads:
                values |= _rcnn(case, case.heads["rcnn"], pyramid)
        if "atss" in case.heads:
            values |= atss_outputs(case.heads["atss"], pyramid)
            values |= _atss(case, case.heads["atss"], pyramid)
    return {f"train/{name}": value for name, value in values.items()}


def _stacked(answer: Decoded) -> tuple[Tensor, Tensor]:
    """Logits and boxes of all layers (layers, B, Q, ...)."""
    return (
        torch.stack([layer.logits for layer in answer.layers]),
        torch.stack([layer.boxes for layer in answer.layers]),
    )


def _main(decoded: Mapping[str, Decoded]) -> Values:
    """Denoising queries come first in the official order."""
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
    """The features of the chosen candidates, got by an embedding that hands them through."""
    scheme = case.schemes["collaborative"]
    group: QueryGroup = positive_group(
        "features",
        candidates,
        [t.size for t in case.batch.targets],
        case.detector.num_classes,
        lambda boxes, features: (features, None),
        (scheme.min_queries, scheme.max_queries),
    )
    return group.queries.content


def _rcnn(case: Case, head: Any, pyramid: Any) -> Values:
    images, targets = case.batch.images, case.batch.targets
    first = head.rpn(pyramid, images)
    values = {}
    for b, target in enumerate(targets):
        _, sample = head.rpn.sample(first.anchors, b, boxes_xyxy_px(target.boxes, target))
        values[f"rpn{b}_sampled_anchor_idx"] = sample.index.sort().values
        values[f"rpn{b}_positive_anchor_idx"] = sample.positive
    proposals = head.rpn.proposals(first, images.sizes, head.rpn.training_selection)
    for b, found in enumerate(proposals):
        values[f"rpn{b}_proposals"] = scored(found.boxes, found.scores)
    regions = head.sample([p.boxes for p in proposals], targets)
    numbers = [torch.full_like(r.boxes[:, :1], b) for b, r in enumerate(regions)]
    if head.mask_head is not None:
        values |= trained_masks(case, head, pyramid, regions)
    features = head.pool(pyramid, [r.boxes for r in regions])
    logits, deltas = head.classify(features)
    return values | {
        "roi_pos": torch.tensor([len(r.target) for r in regions]),
        "roi_neg": torch.tensor([len(r) - len(r.target) for r in regions]),
        "roi_rois": torch.cat(
            [torch.cat(p, 1) for p in zip(numbers, (r.boxes for r in regions), strict=True)]
        ),
        "roi_feats": features,
        "roi_cls_score": logits,
        "roi_bbox_pred": deltas.flatten(1),
    }


def _atss(case: Case, head: Any, pyramid: Any) -> Values:
    anchors = head.grid(pyramid, case.batch.images.padded_sizes)
    assigned = head.assign(head.predictions(pyramid), anchors, case.batch)
    wanted = head.targets(assigned, anchors, case.batch)
    values = {}
    for b, positives in enumerate(wanted.positive):
        positive = positives.nonzero()[:, 0]
        values[f"atss{b}_pos_idx"] = positive
        values[f"atss{b}_pos_label"] = wanted.labels[b, positive]
        values[f"atss{b}_pos_anchor"] = anchors.boxes[positive]
        values[f"atss{b}_pos_target"] = wanted.boxes_px[b, positive]
    return values
