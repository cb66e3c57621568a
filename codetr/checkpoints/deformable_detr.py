"""Conversion of one-stage checkpoints of the original Deformable DETR (fundamentalvision).

Their names are those of two-stage models (``h_detr``) except for the queries. Without box
refinement, all decoder layers share one class and one box embedding, saved under each layer's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from codetr.checkpoints import h_detr
from codetr.checkpoints.renaming import Conversion, Rules, convert_by

CLASS_EMBEDDING = h_detr.CLASS_EMBEDDING
MARKS = (
    CLASS_EMBEDDING,
    "transformer.reference_points.weight",
    "transformer.encoder.layers.0.self_attn.sampling_offsets.weight",
)
"""Names by which a state dict is recognised."""
CLASS_ROWS = r"(transformer\.decoder\.)?class_embed\.\d+\..*"
"""Tensors with a row per class."""

_QUERIES = "query_embed.weight"
_POSITION, _CONTENT = "detector.query_init.position", "detector.query_init.content"
_LAYER = re.compile(r"((?:class|bbox)_embed)\.\d+\.(.*)")


def convert_deformable_detr(official: Mapping[str, Tensor], tied: bool) -> Conversion:
    """Convert an official state dict.

    The table of queries is split into positions and contents. With ``tied``, our head has one pair
    of embeddings for all layers: those of further layers are dropped if they equal the first
    layer's, otherwise unused.
    """
    names = ((key, _first(key)) for key in official) if tied else ()
    first = {key: name for key, name in names if name is not None and name != key}
    dropped = tuple(k for k, name in first.items() if _equal(official[k], official.get(name)))
    single = {k: v for k, v in official.items() if k not in first}
    parts = {}
    if _QUERIES in official:
        position, content = official[_QUERIES].chunk(2, dim=1)
        parts[_QUERIES] = {_POSITION: position, _CONTENT: content}
    rules: Rules = (
        (r"transformer\.reference_points\.(.*)", r"detector.query_init.reference_points.\1"),
        *h_detr.neck_rules(official),
        *h_detr.RULES,
    )
    renamed = convert_by(single, rules, parts)
    return replace(
        renamed,
        dropped=renamed.dropped + dropped,
        unused=renamed.unused + tuple(k for k in first if k not in dropped),
    )


def _first(key: str) -> str | None:
    """The name of the first layer's counterpart of ``key``; None if it belongs to no head."""
    match = _LAYER.fullmatch(key)
    return f"{match[1]}.0.{match[2]}" if match else None


def _equal(value: Tensor, first: Tensor | None) -> bool:
    return first is not None and torch.equal(value, first)
