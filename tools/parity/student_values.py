"""Quantities of a training step of Conditional DETR, DAB-DETR, DN-DETR or DINO by recorded name.

The official codes put denoising queries before the main ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr.boxes import logit
from codetr.models.detectors.grouping import attention_mask
from codetr.models.transformers.queries import grid_proposals
from codetr.structures import Batch, Decoded, Tap
from codetr.supervision.schemes import denoising, query_denoising
from tools.parity.noise import items
from tools.parity.step import Step
from tools.parity.values import layers

EPS = 1e-12
"""For logits of boxes inside the image."""


def noised(step: Step) -> str | None:
    """The name of the group of denoising queries, if there is one."""
    groups = (query_denoising.GROUP, denoising.GROUP)
    return next((n for n, a in step.decoded.items() if n in groups and len(a.group)), None)


@torch.no_grad()
def step_values(detector: Any, step: Step, batch: Batch) -> dict[str, Any]:
    """All quantities that may be recorded. ``step`` has watched ``backbone``, the decoder's
    ``norm`` and its ``last`` layer.
    """
    main = step.main
    anchors = _in_front(step, [_anchors(answer) for answer in step.decoded.values()])
    last = step.seen.outputs["last"][0].content
    values: dict[str, Any] = {
        "c5": step.seen.outputs["backbone"][0].maps[-1],
        "encoder_memory": step.memory.tokens,
        "reference_points": main.group.queries.anchors,
        "references": torch.cat([anchors, _refined(detector, step, anchors, last)[None]]),
        "decoder_hidden": torch.stack([_swapped(step, h) for h in step.seen.outputs["norm"]]),
        **layers("", main.layers),
        "query_content_unknown": main.group.queries.content[0, 0],
    }
    if step.memory.position is not None:
        (shape,) = step.memory.shapes
        values["position"] = step.memory.position[0].T.unflatten(1, shape)
    if main.proposals is None:
        values["references"] = anchors  # the last refinement is not recorded
    else:
        values |= _selection(detector, step)
    return values | _denoising(step, batch)


def _anchors(answer: Decoded) -> Tensor:
    """(L, B, Q, 4 or 2) anchors that the heads of each layer refine."""
    taps: tuple[Tap, ...] = next(iter(answer.taps.values()))
    return torch.stack([tap.anchors for tap in taps])


def _in_front(step: Step, parts: list[Tensor]) -> Tensor:
    """Concatenate (..., Q, C) of all groups, denoising queries first; ours have the main ones
    first.
    """
    return torch.cat(parts[::-1], dim=-2)


def _swapped(step: Step, joint: Tensor) -> Tensor:
    """(..., Q, C) of all queries with denoising ones moved to the front."""
    number = len(step.main.group)
    return torch.cat([joint[..., number:, :], joint[..., :number, :]], dim=-2)


def _refined(detector: Any, step: Step, anchors: Tensor, last: Tensor) -> Tensor:
    """(B, Q, 4) anchors refined by the last layer, before the norm."""
    embeddings = detector.head.layer(detector.num_layers - 1)
    found = embeddings.boxes(_swapped(step, last), anchors[-1], detector.decoder.eps)
    if anchors.shape[-1] != found.shape[-1]:
        return anchors[-1]
    refined: Tensor = found
    return refined


def _selection(detector: Any, step: Step) -> dict[str, Any]:
    """The encoder's proposals and the selected ones."""
    found, chosen = detector.query_init.stage(step.memory, detector.head)
    grid, usable = grid_proposals(step.memory)
    shown = torch.where(usable[..., None], grid, 0.0).sigmoid()
    picked = chosen[..., None].expand(-1, -1, 4)
    selected: Any = step.main.proposals
    return {
        "proposal_valid": usable,
        "proposals": shown,
        "enc_logits": found.logits,
        "enc_score": found.logits.amax(-1),
        "topk_index": chosen,
        "init_box_proposal": shown.gather(1, picked),
        "interm_boxes": selected.boxes,
        "interm_logits": selected.logits,
    }


def _denoising(step: Step, batch: Batch) -> dict[str, Any]:
    """Queries, attention mask and predictions of the noised boxes, if there are any."""
    name = noised(step)
    if name is None:
        return {}
    answer = step.decoded[name]
    group, counts = answer.group, [len(t) for t in batch.targets]
    allowed = attention_mask([group, step.main.group])
    assert allowed is not None
    blocked = ~allowed.numpy()
    assert group.blocked is not None
    number = len(group)
    size = int((~group.blocked[0]).sum())
    return {
        **items(group, counts),
        "dn_query_anchor_logits": logit(group.queries.anchors, EPS),
        "dn_query_content": group.queries.content,
        "attention_mask_blocked": blocked,
        "attention_mask_blocked_packed": np.packbits(blocked, axis=1),
        "attention_mask_size": np.array(blocked.shape),
        "dn_pad_and_groups": np.array([number, number // size]),
        **layers("dn_", answer.layers),
    }
