"""Quantities that several kinds of records share, by official name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from codetr.structures import Detections, ImageInfo, Pyramid
from codetr.supervision.aux_heads.dense import DensePredictions
from codetr.supervision.aux_heads.matched import DenseTargets

Values = dict[str, Any]
"""Tensors or arrays by official name."""


def numbered(name: str, values: Iterable[Tensor]) -> Values:
    """Name the values by ``name``, which has ``{}`` for their number."""
    return {name.format(i): value for i, value in enumerate(values)}


def scored(boxes: Tensor, scores: Tensor) -> Tensor:
    """(n, 5) boxes with their scores."""
    return torch.cat([boxes, scores[:, None].to(boxes)], dim=1)


def detections(name: str, images: Iterable[Detections]) -> Values:
    """``{name}_boxes_scores`` (n, 5) and ``{name}_labels`` (n,); ``name`` as in ``numbered``."""
    found = list(images)
    boxes = [scored(one.boxes_xyxy_px, one.scores) for one in found]
    labels = [one.labels for one in found]
    return numbered(f"{name}_boxes_scores", boxes) | numbered(f"{name}_labels", labels)


def branch_maps(name: str, said: DensePredictions, pyramid: Pyramid, quality: str = "") -> Values:
    """``{name}cls0`` ... (B, channels, h, w) of every level: classes, regression and ``quality``,
    which is that branch's official name.
    """
    parts = {"cls": said.logits, "reg": said.regression}
    if said.quality is not None:
        parts[quality] = said.quality[..., None]
    cells = torch.tensor([h * w for h, w in pyramid.shapes])
    values: Values = {}
    for part, flat in parts.items():
        per_cell = flat.shape[1] // int(cells.sum())
        levels = flat.split((cells * per_cell).tolist(), dim=1)
        maps = (
            value.unflatten(1, (*shape, per_cell)).flatten(3).permute(0, 3, 1, 2)
            for value, shape in zip(levels, pyramid.shapes, strict=True)
        )
        values |= numbered(f"{name}{part}{{}}", maps)
    return values


def positives(
    name: str, wanted: DenseTargets, anchors: Tensor, further: Mapping[str, Tensor] | None = None
) -> Values:
    """Index, label, target and anchor (a row of (A, 4)) of every positive, and rows of ``further``
    tables (B, A, ...); ``name`` as for ``numbered``.
    """
    every = {
        "label": wanted.labels,
        "target": wanted.boxes_px,
        "target_box": wanted.boxes_px,
        "anchor": anchors.expand_as(wanted.boxes_px),
    }
    values = numbered(f"{name}_pos_idx", map(places, wanted.positive))
    for part, table in {**every, **(further or {})}.items():
        rows = (own[positive] for own, positive in zip(table, wanted.positive, strict=True))
        values |= numbered(f"{name}_pos_{part}", rows)
    return values


def bitmaps(name: str, found: Detections, info: ImageInfo) -> Values:
    """The masks of ``found`` in the frame of ``info``, and the area of each."""
    bits = found.bitmaps(info.original_size)
    return {f"{name}_bits": bits, f"{name}_area": bits.sum(dim=(1, 2))}


def places(mask: Tensor) -> Tensor:
    """(P,) indices where ``mask`` (A,) is True."""
    return mask.nonzero().squeeze(1)


def with_last_refinement(detector: Any, anchors: Tensor, last: Tensor) -> Tensor:
    """(L + 1, B, Q, 4): ``anchors`` (L, B, Q, 4) before each decoder layer, and after the last one,
    refined from its output ``last`` (B, Q, C) before the norm, which no layer sees.
    """
    part = detector.head.layer(len(anchors) - 1)
    refined: Tensor = part.boxes(last, anchors[-1], detector.decoder.eps)
    return torch.cat([anchors, refined[None]])
