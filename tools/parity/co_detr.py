"""Co-DETR: its quantities, tolerances and names of losses.

In float32 the query selection is given the recorded indices, since two proposals of nearly equal
score may swap, and whatever depends on further such decisions is not compared. Losses and gradient
norms are compared unless padded positions are chaotic; then only the main branch is. (With a
position offset the angle of a fully padded row or column is about -3e6, of which float32 keeps no
fractional digit, and padded positions reach the auxiliary heads.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr.boxes import logit
from codetr.evaluation import Postprocess
from codetr.models.detectors.grouping import attention_mask
from codetr.models.detectors.protocol import MAIN
from codetr.models.transformers.queries import grid_proposals
from codetr.structures import (
    CROSS_ATTENTION,
    Batch,
    Candidates,
    Decoded,
    Memory,
    Predictions,
    Pyramid,
    QueryGroup,
)
from codetr.supervision.schemes.positives import count_positives, positive_group
from tools.parity.case import Case
from tools.parity.detector import Family
from tools.parity.mask_branch import evaluated_branch, trained_branch
from tools.parity.regions import evaluated, trained, trained_masks
from tools.parity.step import Step, probe
from tools.parity.table import EXACT, Tolerance, Tolerances
from tools.parity.values import (
    Values,
    branch_maps,
    detections,
    numbered,
    positives,
    with_last_refinement,
)

DENOISING, MASKS = "denoising", "masks"

PIXELS = (
    r"_(boxes_scores|proposals|rois|target_box|pred_box|query_coords)$"
    r"|_pos_(anchor|target|point|ltrb)$|^query/[ct]"
)
PASTED = r"_(bits|area)$"
FEW_PIXELS = Tolerance(absolute=2)
"""Pixels that may differ in all pasted masks of an image, because their probability is that close
to the threshold.
"""

FLOAT64 = Tolerances(
    arrays=Tolerance(absolute=1e-5, relative=1e-5),
    losses=Tolerance(relative=1e-6),
    gradients=Tolerance(absolute=1e-9, relative=1e-5),
    special={"_weights$": EXACT, PASTED: FEW_PIXELS, PIXELS: Tolerance(absolute=1e-3)},
)
"""Also for its heads alone."""
FLOAT32 = Tolerances(
    arrays=Tolerance(absolute=2e-4, relative=2e-4),
    losses=Tolerance(absolute=1e-6, relative=1e-4),
    gradients=Tolerance(absolute=1e-6, relative=1e-2),
    special={
        "_weights$": EXACT,
        PASTED: FEW_PIXELS,
        PIXELS: Tolerance(absolute=1e-1),
        "loss.*0$": Tolerance(absolute=1e-6, relative=5e-3),  # of regions
    },
)

DECIDED = re.compile(r"(eval|train)/((det|rpn|roi_det|atss|atss_det)\d|roi_|aux).*|counts/.*")
"""Rows that depend on discrete decisions (which proposal, which sample) that rounding can change.
"""

PADDED = re.compile(
    r"(eval|train)/((enc_map|rpn_|atss_|gt_roi).*|pos_plus_level_embed|memory)"
    r"|loss_rpn_\w+|loss_[a-z]+[01]|.*_aux[01]|grad .*|frozen .*|losses that .*|total"
)
"""Rows about padded positions, or that depend on them through a convolution."""


def co_detr(dtype: torch.dtype) -> Family:
    """Compares everything that is reproducible in ``dtype``."""
    exact = dtype == torch.float64

    def compared(case: Case, quantity: str) -> bool:
        chaotic = bool(case.batch.images.padding.any()) and case.detector.encoder.offset != 0
        decided, padded = DECIDED.fullmatch(quantity), PADDED.fullmatch(quantity)
        return exact or not (decided or (chaotic and padded))

    return Family(
        values=lambda case, step: training_values(case, step) | evaluation_values(case),
        tolerances=FLOAT64 if exact else FLOAT32,
        loss_name=co_detr_loss,
        compared=compared,
    )


TERMS = {"cls": "loss_cls", "bbox": "loss_bbox", "giou": "loss_iou"}
HEAD_NUMBERS = {"rcnn": "0", "atss": "1"}


def co_detr_loss(name: str, num_layers: int) -> str:
    """The official name of one of our losses in Co-DETR."""
    scheme, *place, term = name.split("/")
    if scheme == "masks":
        return f"loss_{term}"
    if scheme == "collaborative" and len(place) == 1:
        return f"loss_{term}" if term.startswith("rpn_") else f"loss_{term}{_number(place[0])}"
    term = TERMS.get(term, term)
    if place == ["encoder"]:
        return f"enc_{term}"
    index = int(place[-1].removeprefix("layer"))
    layer = "" if index == num_layers - 1 else f"d{index}."
    if scheme == "denoising":
        return f"{layer}dn_{term}"
    if scheme == "collaborative":
        return f"{layer}{term}_aux{_number(place[0].removeprefix('positive_'))}"
    return f"{layer}{term}"


def _number(head: str) -> str:
    return HEAD_NUMBERS.get(head, f"_{head}")


@torch.no_grad()
def training_values(case: Case, step: Step) -> Values:
    """Queries, predictions and assignments of ``step`` (``train/...``). Heads are computed again:
    call it within ``as_recorded``.
    """
    values = _main(step.decoded) | _denoising(step.decoded)
    if MASKS in case.schemes:
        values |= trained_branch(case, step.memory, step.decoded)
    if case.heads:
        pyramid = case.schemes["collaborative"].auxiliary_pyramid(step.memory)
        values |= _heads(case, step.decoded, pyramid)
    return {n if n.startswith("counts/") else f"train/{n}": v for n, v in values.items()}


def _main(decoded: Mapping[str, Decoded]) -> Values:
    """Predictions of all queries, denoising ones first, as in the official code."""
    groups = [decoded[name] for name in (DENOISING, MAIN) if name in decoded]
    logits, boxes = zip(*map(_stacked, groups), strict=True)
    proposals = decoded[MAIN].proposals
    assert proposals is not None
    return {
        "all_cls_scores": torch.cat(logits, dim=2),
        "all_bbox_preds": torch.cat(boxes, dim=2),
        "topk_anchor": proposals.boxes,
    }


def _stacked(answer: Decoded) -> tuple[Tensor, Tensor]:
    """Logits and boxes of all layers (layers, B, Q, ...)."""
    logits, boxes = zip(*((layer.logits, layer.boxes) for layer in answer.layers), strict=True)
    return torch.stack(logits), torch.stack(boxes)


def _denoising(decoded: Mapping[str, Decoded]) -> Values:
    if DENOISING not in decoded:
        return {}
    group = decoded[DENOISING].group
    mask = attention_mask([group, decoded[MAIN].group])
    assert mask is not None
    return {
        "dn_label_query": group.queries.content,
        "dn_bbox_query": logit(group.queries.anchors, 1e-3),
        "dn_attn_mask_packed": np.packbits(~mask.numpy(), axis=1),
    }


def _heads(case: Case, decoded: Mapping[str, Decoded], pyramid: Pyramid) -> Values:
    """The auxiliary heads, and the queries made from their positives."""
    answers = [decoded[f"positive_{name}"] for name in case.heads]
    values: Values = {"counts/aux_num": torch.tensor([len(answer.group) for answer in answers])}
    for number, (part, answer) in enumerate(zip(case.heads.values(), answers, strict=True)):
        output = part(pyramid, case.batch)
        values |= _positives(f"aux{number}", answer, case, output.candidates)
    heads: dict[str, Any] = case.heads
    if "rcnn" in heads:
        found, regions = trained(heads["rcnn"], pyramid, case.batch)
        values |= found
        if heads["rcnn"].mask_head is not None:
            values |= trained_masks(heads["rcnn"], pyramid, regions, case.batch.targets)
    if "atss" in heads:
        values |= _atss(heads["atss"], pyramid, case.batch)
    return values


def _positives(name: str, answer: Decoded, case: Case, candidates: Sequence[Candidates]) -> Values:
    group, queries, classes = answer.group, answer.group.queries, case.detector.num_classes
    pairs = group.assignment
    assert pairs is not None
    labels = torch.full(queries.anchors.shape[:2], classes)
    targets = torch.zeros_like(queries.anchors)
    where = (pairs.image, pairs.query)
    labels[where] = torch.cat([t.labels for t in group.targets])[pairs.target]
    targets[where] = torch.cat([t.boxes for t in group.targets])[pairs.target]
    logits, boxes = _stacked(answer)
    values = {
        "coords": queries.anchors,
        "labels": labels,
        "targets": targets,
        "label_weights": torch.ones_like(labels),
        "bbox_weights": labels < classes,
        "feats": _features(case, candidates),
        "cls": logits,
        "box": boxes,
        "dec_query": queries.content,
        "dec_ref": queries.anchors,
    }
    if queries.position is not None:
        values["dec_query_pos"] = queries.position
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
    }


@torch.no_grad()
def evaluation_values(case: Case) -> Values:
    """Backbone, neck, encoder, proposals, decoder, detections and auxiliary heads of an evaluation
    (``eval/...``).
    """
    case.root.eval()
    memory, values = _encoding(case)
    last, decoded = _decoding(case, memory)
    images, heads = case.batch.images, case.heads
    main = case.postprocess(last, images.sizes, case.batch.infos)
    plain = Postprocess(max_detections=case.postprocess.max_detections)
    values |= decoded | detections("det{}", main)
    values |= detections("det{}_nonms", plain(last, images.sizes, case.batch.infos))
    if case.detector.mask_branch is not None:
        values |= evaluated_branch(case, memory, main)
    if heads:
        pyramid = case.schemes["collaborative"].auxiliary_pyramid(memory)
        values |= numbered("enc_map{}", pyramid.maps)
    if "atss" in heads:
        atss: Any = heads["atss"]
        values |= branch_maps("atss_", atss.predictions(pyramid), pyramid, "ctr")
        values |= detections("atss_det{}", atss.predict(pyramid, images))
    if "rcnn" in heads:
        values |= evaluated(case, heads["rcnn"], pyramid, main)
    return {f"eval/{name}": value for name, value in values.items()}


def _encoding(case: Case) -> tuple[Memory, Values]:
    parts = case.detector
    watched = {"backbone": parts.backbone, "neck": parts.neck, "layer": parts.encoder.layers[0]}
    with probe(watched) as seen:
        memory: Memory = parts.encode(case.batch.images)
    _, position, frame, padding, _ = seen.inputs["layer"][0]
    references = frame.origin.unflatten(-1, (len(memory.shapes), -1, 2))[:, :, 0, :, 0]
    return memory, {
        **numbered("backbone{}", seen.outputs["backbone"][0].maps),
        **numbered("neck{}", seen.outputs["neck"][0].maps),
        "mask": padding,
        "valid_ratios": memory.valid_ratios,
        "pos_plus_level_embed": position.expand_as(memory.tokens),
        "enc_reference_points": references,
        "memory": memory.tokens,
    }


def _decoding(case: Case, memory: Memory) -> tuple[Predictions, Values]:
    detector = case.detector
    stage, decoder, head = detector.query_init.stage, detector.decoder, detector.head
    with probe({"norm": stage.norm}) as first:
        proposals, chosen = stage(memory, head)
    (queries,) = detector.queries(memory)
    layers = {f"layer{i}": layer for i, layer in enumerate(decoder.layers)}
    heads = {f"head{i}": head.layer(i).classify for i in range(len(layers))}
    with probe({**layers, **heads}) as seen:
        decoded = detector.decode(memory, [QueryGroup(name=MAIN, queries=queries)])[MAIN]
    scores, coordinates = proposals.logits, proposals.box_logits.sigmoid()
    logits, boxes = _stacked(decoded)
    references = boxes
    if decoder.norm is not None:  # they are refined from outputs before it (DINO)
        anchors = torch.stack([tap.anchors for tap in decoded.taps[CROSS_ATTENTION]])
        references = with_last_refinement(detector, anchors, seen.outputs[[*layers][-1]][0].content)
    values = {
        "enc_output_memory": first.outputs["norm"][0],
        "enc_output_proposals": grid_proposals(memory)[0],
        "topk_input": scores.amax(-1) if stage.rank_by == "any_class" else scores[..., 0],
        "topk_indices": chosen,
        "topk_score": scores.gather(1, chosen[..., None].expand(-1, -1, scores.shape[-1])),
        "topk_anchor": coordinates.gather(1, chosen[..., None].expand(-1, -1, 4)),
        "enc_outputs_class": scores,
        "enc_outputs_coord": coordinates,
        "dec_in_query": queries.content,
        "dec_in_reference": queries.anchors,
        "dec_hidden": torch.stack([seen.inputs[name][0][0] for name in heads]),
        "dec_references": references,
        "all_cls_scores": logits,
        "all_bbox_preds": boxes,
    }
    if queries.position is not None:
        values["dec_in_query_pos"] = queries.position
    return decoded.layers[-1], values
