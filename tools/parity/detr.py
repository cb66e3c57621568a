"""Quantities of a training step of detectors of DETR's family, by their names in any of the
official codes: MS-DETR, Teach-DETR, Conditional DETR, DAB-DETR, DN-DETR, DINO, YOLOS and ViDT.

The official codes put denoising queries before the main ones, ours after them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codetr.boxes import logit
from codetr.models.detectors.grouping import attention_mask
from codetr.models.transformers.queries import grid_proposals
from codetr.structures import Predictions
from codetr.supervision.schemes.hybrid import GROUP as HYBRID
from tools.parity.case import Case
from tools.parity.components import MATCHER, check_matcher
from tools.parity.detector import Family
from tools.parity.measured import PREFIXES, detr_loss, measured
from tools.parity.noise import items
from tools.parity.step import Step
from tools.parity.table import Row, Tolerance, Tolerances, compare
from tools.parity.teacher_files import LOADER, check_loader
from tools.parity.values import Values, numbered, with_last_refinement

WATCHED = re.compile(
    r"backbone(\.body\.(patch_embed|norm|blocks\.\d+)|\.attention\.\d+\.\d+)?"
    r"|decoder\.(norm|(decoder\.)?layers\.\d+)"
)
"""Modules whose inputs and outputs are recorded, where a detector has them."""

EPS = 1e-12
"""For logits of boxes inside the image."""


def watched(detector: nn.Module) -> dict[str, nn.Module]:
    """The modules of ``detector`` that ``detr_values`` looks into, by name."""
    return {name: part for name, part in detector.named_modules() if WATCHED.fullmatch(name)}


@torch.no_grad()
def detr_values(case: Case, step: Step) -> Values:
    """All quantities that may be recorded. ``step`` has watched the modules of ``watched``."""
    main, memory, queries = step.main, step.memory, step.main.group.queries
    (pyramid, *_) = step.seen.outputs["backbone"]
    values: Values = {
        **numbered("patch_{}", pyramid.maps),
        "encoder_memory": memory.tokens,
        "reference_points": queries.anchors,
        "init_reference": queries.anchors,
        "inter_references": torch.stack([layer.boxes for layer in main.layers]),
        "det_projected": queries.content,
        "query_content_unknown": queries.content[0, 0],
        **_predictions("one_to_one", main.layers),
    }
    if pyramid.maps:
        values["c5"] = pyramid.maps[-1]
        cells = [h * w for h, w in memory.shapes]
        masks = zip(memory.padding.split(cells, dim=1), memory.shapes, strict=True)
        values |= numbered("mask_{}", (mask.unflatten(1, shape) for mask, shape in masks))
    if memory.position is not None:
        (shape,) = memory.shapes
        values["position"] = memory.position[0].T.unflatten(1, shape)
    if queries.position is not None:
        values["query_pos"] = queries.position[:1]  # the same for all images
    if "mixed" in case.schemes:
        values |= _predictions("mixed", case.schemes["mixed"].predictions(main))
    for name, answer in step.decoded.items():
        if name in PREFIXES:
            values |= _predictions(name, answer.layers)
    stage = getattr(case.detector.query_init, "stage", None)
    if stage is not None:
        values |= _two_stages(case, step, stage)
    return values | _of_tokens(step.seen) | _decoder(case.detector, step) | _denoising(case, step)


def _predictions(scheme: str, predictions: Sequence[Predictions]) -> Values:
    """``{prefix}boxes`` (L, B, Q, 4) and each layer's ``{prefix}logits_l0`` ...; without axis and
    number for a single layer.
    """
    logits, boxes = [p.logits for p in predictions], torch.stack([p.boxes for p in predictions])
    values: Values = {}
    for prefix in PREFIXES[scheme]:
        if len(predictions) == 1:
            values |= {f"{prefix}boxes": boxes[0], f"{prefix}logits": logits[0]}
        else:
            values |= {f"{prefix}boxes": boxes} | numbered(f"{prefix}logits_l{{}}", logits)
    return values


def _two_stages(case: Case, step: Step, stage: Any) -> Values:
    """The encoder's proposals, and the selected ones. Call it with the selection of the step."""
    tables = [table for scheme in case.schemes.values() for table in scheme.tables]
    found, chosen = stage(step.memory, case.detector.head, tables)
    grid, usable = grid_proposals(step.memory)
    shown = torch.where(usable[..., None], grid, 0.0).sigmoid()
    selected: Any = step.main.proposals
    return {
        "enc_anchors": grid.sigmoid(),
        "proposal_valid": usable,
        "proposals": shown,
        "enc_logits": found.logits,
        "enc_logits_channel0": found.logits[..., 0],
        "enc_score": found.logits.amax(-1),
        "enc_boxes": found.box_logits.sigmoid(),
        "topk_index": chosen,
        "init_box_proposal": shown.gather(1, chosen[..., None].expand(-1, -1, 4)),
        "interm_boxes": selected.boxes,
        "interm_logits": selected.logits,
    }


def _of_tokens(seen: Any) -> Values:
    """Patches and blocks of a Vision Transformer, detection tokens of a Swin Transformer."""
    values: Values = {}
    for name, (output, *_) in seen.outputs.items():
        kind, *numbers = re.sub(r"backbone\.(body\.)?", "", name).split(".")
        if kind == "patch_embed":
            values["patch"] = output.flatten(1, 2)
        elif kind == "blocks":
            values[f"block{numbers[0]}_in"] = seen.inputs[name][0][0]
            values[f"block{numbers[0]}_out"] = output
        elif name == "backbone.body.norm":
            values["final"] = output
        elif kind == "attention":
            values[f"stage{numbers[0]}_det"] = output[1]  # of the stage's last block
    return values


def _decoder(detector: Any, step: Step) -> Values:
    """Hidden states of all layers, and the anchors that the heads refine: (L, B, Q, 4 or 2)."""
    made = step.seen.outputs
    layers = [name for name in made if re.fullmatch(r"decoder\..*layers\.\d+", name)]
    if not layers:
        return {}
    if "decoder.norm" not in made:
        hidden = [made[name][0].content[:, : len(step.main.group)] for name in layers]
        return {"decoder_hidden": torch.stack([step.main.group.queries.content, *hidden])}
    taps = [next(iter(answer.taps.values())) for answer in step.decoded.values()]
    anchors = torch.cat([torch.stack([t.anchors for t in own]) for own in taps[::-1]], dim=-2)
    if step.main.proposals is not None:  # there the last refinement is recorded too
        last = _denoising_first(step, made[layers[-1]][0].content)
        anchors = with_last_refinement(detector, anchors, last)
    normed = [_denoising_first(step, hidden) for hidden in made["decoder.norm"]]
    return {"decoder_hidden": torch.stack(normed), "references": anchors}


def _denoising_first(step: Step, joint: Tensor) -> Tensor:
    """(..., Q, C) of all queries with denoising ones moved to the front."""
    number = len(step.main.group)
    return torch.cat([joint[..., number:, :], joint[..., :number, :]], dim=-2)


def _denoising(case: Case, step: Step) -> Values:
    """Queries and attention mask of the noised boxes, if there are any."""
    answer = step.noised
    if answer is None:
        return {}
    group, counts = answer.group, [len(t) for t in case.batch.targets]
    allowed = attention_mask([group, step.main.group])
    assert allowed is not None
    assert group.blocked is not None
    blocked = ~allowed.numpy()
    size = int((~group.blocked[0]).sum())
    return {
        **items(group, counts),
        "dn_query_anchor_logits": logit(group.queries.anchors, EPS),
        "dn_query_content": group.queries.content,
        "attention_mask_blocked": blocked,
        "attention_mask_blocked_packed": np.packbits(blocked, axis=1),
        "attention_mask_size": np.array(blocked.shape),
        "dn_pad_and_groups": np.array([len(group), len(group) // size]),
    }


def _parts_alone(case: Case, step: Step) -> Iterator[Row]:
    """The anchors of both groups of H-Deformable-DETR, and what further files of the folder hold:
    MS-DETR's matcher and Teach-DETR's files on their own.
    """
    recorded = case.recorded
    if HYBRID in step.decoded:
        proposals: Any = step.main.proposals
        best = torch.from_numpy(recorded.arrays["topk_index"]).long()
        theirs = proposals.boxes.gather(1, best[..., None].expand(-1, -1, 4))
        joint = torch.cat([answer.group.queries.anchors for answer in step.decoded.values()], dim=1)
        tolerance = Tolerance(absolute=1e-12)
        yield compare("topk_index (anchors of both groups)", joint, theirs, tolerance)
    if (recorded.folder / MATCHER).is_file():
        yield from check_matcher(recorded.folder, case.schemes["mixed"].assigner)
    if (recorded.folder / LOADER).is_file():
        yield from check_loader(recorded)


_detr = partial(
    Family,
    values=detr_values,
    watched=watched,
    measured=partial(measured, encoder="_enc"),
    loss_name=detr_loss,
    further=_parts_alone,
)
H_DETR = _detr(
    tolerances=Tolerances(
        arrays=Tolerance(absolute=1e-5, relative=1e-5),
        losses=Tolerance(absolute=1e-8, relative=1e-6),
        gradients=Tolerance(absolute=1e-9, relative=5e-5),
    ),
    visible=("encoder_memory",),
)
"""H-Deformable-DETR, and MS-DETR and Teach-DETR, which are built on its code. Their recorded
float64 runs keep position codes and valid ratios in float32, so numbers agree to about 1e-6 only.
At padded tokens, where a position's angle can be -3e6, the memory is not compared; nothing reads it
there.
"""
STUDENTS = _detr(
    measured=partial(measured, encoder="_interm"),
    loss_name=partial(detr_loss, encoder="_interm"),
    tolerances=Tolerances(
        arrays=Tolerance(absolute=1e-5, relative=1e-6),
        losses=Tolerance(absolute=1e-12, relative=1e-9),
        gradients=Tolerance(absolute=1e-9, relative=1e-7),
        special={
            "^eval_": Tolerance(absolute=1e-10),
            "boxes|references": Tolerance(absolute=1e-6),
        },
    ),
)
"""Conditional DETR, DAB-DETR, DN-DETR and DINO."""
TOKENS = _detr(
    tolerances=Tolerances(
        arrays=Tolerance(absolute=1e-5, relative=1e-7),
        losses=Tolerance(relative=1e-9),
        gradients=Tolerance(absolute=1e-9, relative=1e-7),
        special={"^boxes$|reference": Tolerance(absolute=1e-6)},
    ),
    unread=True,
)
"""YOLOS and ViDT, whose queries are tokens of the backbone."""
