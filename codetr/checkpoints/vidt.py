"""Conversion of official ViDT checkpoints (naver-ai/vidt, without the parts of ViDT+)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from codetr.checkpoints import h_detr
from codetr.checkpoints.renaming import DROPPED, Conversion, Rules, convert_by

CLASS_EMBEDDING = "class_embed.0.weight"
MARKS = (CLASS_EMBEDDING, "backbone.det_pos_embed")
"""Names by which a state dict is recognised."""

UNREAD = (
    r"transformer\.level_embed",
    r"backbone\.norm[1-3]\.(weight|bias)",
    r"backbone\.layers\.\d\.downsample\.(expansion|norm2)\..*",
)
"""Parameters that the official code never uses: they get no gradient there."""

_LAYER = r"transformer\.decoder\.(layers\.\d+)\."
_OURS = r"detector.decoder.decoder.\1."
_BLOCK = r"backbone\.layers\.(\d)\.blocks\.(\d+)\."

RULES: Rules = (
    *((pattern, DROPPED) for pattern in UNREAD),
    (r"backbone\..*\.relative_position_index", DROPPED),  # a computed table
    (r"backbone\.det_token", r"detector.backbone.tokens"),
    (r"backbone\.det_pos_embed", r"detector.backbone.positions"),
    (_BLOCK + r"det_pos_linear\.(.*)", r"detector.backbone.attention.\1.\2.position.\3"),
    (r"backbone\.layers\.3\.downsample\.(.*)", r"detector.backbone.merging.\1"),
    (r"backbone\.(.*)", r"detector.backbone.body.\1"),
    (r"input_proj\.(\d)\.(.*)", r"detector.neck.maps.\1.\2"),
    (r"tgt_proj\.(.*)", r"detector.query_init.content.\1"),
    (r"query_pos_proj\.(.*)", r"detector.query_init.position.\1"),
    (r"transformer\.reference_points\.(.*)", r"detector.query_init.reference_points.\1"),
    (_LAYER + r"linear1\.(.*)", _OURS + r"feed_forward.expand.\2"),
    (_LAYER + r"linear2\.(.*)", _OURS + r"feed_forward.contract.\2"),
)


def convert_vidt(official: Mapping[str, Tensor]) -> Conversion:
    """Convert an official state dict. The batch dimension of tokens is removed, and the projections
    of tokens, which are 1x1 convolutions there, become linear layers.
    """
    shaped = {key: _shaped(key, value) for key, value in official.items()}
    return convert_by(shaped, (*RULES, *_DECODER_RULES))


def _shaped(key: str, value: Tensor) -> Tensor:
    if key in ("backbone.det_token", "backbone.det_pos_embed"):
        return value[0]
    if re.fullmatch(r"(tgt_proj|query_pos_proj)\.0\.weight", key):
        return value.flatten(1)
    return value


_DECODER_RULES: Rules = tuple(
    (pattern, name.replace("detector.decoder.", "detector.decoder.decoder."))
    for pattern, name in h_detr.RULES
)
"""Rules of Deformable DETR, whose decoder is nested in ours."""
