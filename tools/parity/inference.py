"""Quantities of an evaluation of Co-DETR by official name (``eval/...``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from codetr.evaluation import Postprocess
from codetr.models.detectors.protocol import MAIN
from codetr.models.transformers.queries import grid_proposals
from codetr.structures import Detections, Memory, Predictions, Pyramid, QueryGroup
from codetr.supervision.aux_heads.matched import true_boxes
from tools.parity.branch_values import evaluated_branch
from tools.parity.case import Case
from tools.parity.mask_values import evaluated_masks
from tools.parity.probe import probe
from tools.parity.region_values import first_stage
from tools.parity.values import Values, branch_maps, detections, numbered


@torch.no_grad()
def evaluation_values(case: Case) -> Values:
    """Backbone, neck, encoder, proposals, decoder, detections and auxiliary heads."""
    case.root.eval()
    encoded, memory = _encoding(case)
    decoded, last = _decoding(case, memory)
    values = encoded | decoded | _detections(case, last)
    sizes, infos = case.batch.images.sizes, case.batch.infos
    main = case.postprocess(last, sizes, infos)
    if case.detector.mask_branch is not None:
        values |= evaluated_branch(case, memory, main)
    if case.heads:
        pyramid = case.schemes["collaborative"].auxiliary_pyramid(memory)
        values |= _auxiliary(case, pyramid, main)
    return {f"eval/{name}": value for name, value in values.items()}


def _encoding(case: Case) -> tuple[Values, Memory]:
    parts = case.detector
    with probe({"backbone": parts.backbone, "neck": parts.neck, "layer": _first(parts)}) as seen:
        memory = parts.encode(case.batch.images)
    _, position, frame, padding, _ = seen.inputs["layer"][0]
    references = frame.origin.unflatten(-1, (len(memory.shapes), -1, 2))[:, :, 0, :, 0]
    return {
        **numbered("backbone{}", seen.outputs["backbone"][0].maps),
        **numbered("neck{}", seen.outputs["neck"][0].maps),
        "mask": padding,
        "valid_ratios": memory.valid_ratios,
        "pos_plus_level_embed": position.expand_as(memory.tokens),
        "enc_reference_points": references,
        "memory": memory.tokens,
    }, memory


def _first(detector: Any) -> nn.Module:
    layer: nn.Module = detector.encoder.layers[0]
    return layer


def _decoding(case: Case, memory: Memory) -> tuple[Values, Predictions]:
    detector = case.detector
    stage = detector.query_init.stage
    with probe({"norm": stage.norm}) as first:
        proposals, chosen = stage(memory, detector.head)
    (queries,) = detector.queries(memory)
    layers = {f"layer{i}": layer for i, layer in enumerate(detector.decoder.layers)}
    heads = {f"head{i}": detector.head.layer(i).classify for i in range(len(layers))}
    with probe({**layers, **heads}) as seen:
        decoded = detector.decode(memory, [QueryGroup(name=MAIN, queries=queries)])[MAIN]
    scores = proposals.logits
    selected = chosen[..., None]
    values = {
        "enc_output_memory": first.outputs["norm"][0],
        "enc_output_proposals": grid_proposals(memory)[0],
        "topk_input": scores.amax(-1) if stage.rank_by == "any_class" else scores[..., 0],
        "topk_indices": chosen,
        "topk_score": scores.gather(1, selected.expand(-1, -1, scores.shape[-1])),
        "topk_anchor": proposals.box_logits.gather(1, selected.expand(-1, -1, 4)).sigmoid(),
        "enc_outputs_class": scores,
        "enc_outputs_coord": proposals.box_logits.sigmoid(),
        "dec_in_query": queries.content,
        "dec_in_reference": queries.anchors,
        "dec_hidden": torch.stack([seen.inputs[name][0][0] for name in heads]),
        "dec_references": _references(case, memory, [seen.inputs[n][0] for n in layers])
        if detector.decoder.norm is not None
        else torch.stack([layer.boxes for layer in decoded.layers]),
        "all_cls_scores": torch.stack([layer.logits for layer in decoded.layers]),
        "all_bbox_preds": torch.stack([layer.boxes for layer in decoded.layers]),
    }
    if queries.position is not None:
        values["dec_in_query_pos"] = queries.position
    return values, decoded.layers[-1]


def _references(case: Case, memory: Memory, inputs: list[tuple[Any, ...]]) -> Tensor:
    """The anchors before the first layer and after each one, refined from outputs before the norm
    (DINO).

    Layers see anchors times the valid ratios. No layer sees the last refinement, which is computed
    here from the last layer's output.
    """
    decoder, head = case.detector.decoder, case.detector.head
    ratios = memory.valid_ratios.repeat(1, 1, 2)[:, None, 0]
    anchors = [references[:, :, 0] / ratios for _, _, references, *_ in inputs]
    hidden = decoder.layers[-1](*inputs[-1]).content
    refined = head.layer(len(inputs) - 1).boxes(hidden, anchors[-1], decoder.eps)
    return torch.stack([*anchors, refined])


def _detections(case: Case, last: Predictions) -> Values:
    sizes, infos = case.batch.images.sizes, case.batch.infos
    plain = Postprocess(max_detections=case.postprocess.max_detections)
    values = detections("det{}", case.postprocess(last, sizes, infos))
    return values | detections("det{}_nonms", plain(last, sizes, infos))


def _auxiliary(case: Case, pyramid: Pyramid, main: Sequence[Detections]) -> Values:
    values = numbered("enc_map{}", pyramid.maps)
    heads: dict[str, Any] = case.heads
    images = case.batch.images
    if "atss" in heads:
        values |= branch_maps("atss_", heads["atss"].predictions(pyramid), pyramid, "ctr")
        values |= detections("atss_det{}", heads["atss"].predict(pyramid, images))
    if "rcnn" in heads:
        found = heads["rcnn"].predict(pyramid, images)
        values |= _rcnn(case, heads["rcnn"], pyramid) | detections("roi_det{}", found)
        if heads["rcnn"].mask_head is not None:
            values |= evaluated_masks(case, heads["rcnn"], pyramid, found, main)
    return values


def _rcnn(case: Case, head: Any, pyramid: Pyramid) -> Values:
    features = head.pool(pyramid, true_boxes(case.batch.targets))
    logits, deltas = head.classify(features)
    return {
        **first_stage(head, pyramid, case.batch.images),
        "gt_roi_feats": features,
        "gt_roi_cls": logits,
        "gt_roi_reg": deltas.flatten(1),
    }
