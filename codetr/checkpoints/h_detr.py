"""Conversion of checkpoints of H-DETR, Teach-DETR and the original two-stage Deformable DETR."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from codetr.checkpoints.coco import CATEGORY_ROWS, COCO
from codetr.checkpoints.renaming import DROPPED, Conversion, Rules, convert_by, perceptron

CLASS_EMBEDDING = "class_embed.0.weight"
MARKS = (CLASS_EMBEDDING, "transformer.enc_output.weight")
"""Names by which a state dict is recognised."""

_QUERIES = "query_embed.weight"
_LAYERS = r"transformer\.(encoder|decoder)\.(layers\.\d+)\."
_ENCODER = r"transformer\.encoder\.(layers\.\d+)\."
_DECODER = r"transformer\.decoder\.(layers\.\d+)\."

RULES: Rules = (
    (r"transformer\.decoder\.(bbox|class)_embed\..*", DROPPED),  # duplicates
    (r".*\.num_batches_tracked", DROPPED),
    (r"backbone\..*\.(relative_position_index|attn_mask)", DROPPED),  # computed tables
    (r"backbone\.0\.body\.(.*)", r"detector.backbone.body.\1"),
    (r"input_proj\.([0-2])\.(.*)", r"detector.neck.maps.\1.\2"),
    (r"input_proj\.3\.(.*)", r"detector.neck.extra.0.\1"),
    (r"transformer\.level_embed", r"detector.encoder.level_embed"),
    (_ENCODER + r"self_attn\.(.*)", r"detector.encoder.\1.attention.\2"),
    (_ENCODER + r"norm1\.(.*)", r"detector.encoder.\1.attention_norm.\2"),
    (_ENCODER + r"norm2\.(.*)", r"detector.encoder.\1.feed_forward_norm.\2"),
    (_LAYERS + r"linear1\.(.*)", r"detector.\1.\2.feed_forward.expand.\3"),
    (_LAYERS + r"linear2\.(.*)", r"detector.\1.\2.feed_forward.contract.\3"),
    (_DECODER + r"self_attn\.in_proj_(.*)", r"detector.decoder.\1.self_attention.in_proj.\2"),
    (_DECODER + r"self_attn\.out_proj\.(.*)", r"detector.decoder.\1.self_attention.out_proj.\2"),
    (_DECODER + r"cross_attn\.(.*)", r"detector.decoder.\1.cross_attention.\2"),
    (_DECODER + r"norm1\.(.*)", r"detector.decoder.\1.cross_attention_norm.\2"),
    (_DECODER + r"norm2\.(.*)", r"detector.decoder.\1.self_attention_norm.\2"),
    (_DECODER + r"norm3\.(.*)", r"detector.decoder.\1.feed_forward_norm.\2"),
    (r"transformer\.enc_output\.(.*)", r"detector.query_init.stage.project.\1"),
    (r"transformer\.enc_output_norm\.(.*)", r"detector.query_init.stage.norm.\1"),
    (r"transformer\.pos_trans\.(.*)", r"detector.query_init.position.\1"),
    (r"transformer\.pos_trans_norm\.(.*)", r"detector.query_init.position_norm.\1"),
    (r"class_embed\.(.*)", r"detector.head.classify.\1"),
    *perceptron(r"bbox_embed\.(\d+)", r"detector.head.regress.\1", 3),
)


def convert_h_detr(official: Mapping[str, Tensor], num_queries: int) -> Conversion:
    """Convert an official state dict of a two-stage model.

    The first ``num_queries`` learned queries belong to the detector, further ones to the hybrid
    scheme.
    """
    parts = {_QUERIES: _queries(official[_QUERIES], num_queries)} if _QUERIES in official else {}
    return convert_by(official, (*neck_rules(official), *RULES), parts)


def _queries(table: Tensor, num_queries: int) -> dict[str, Tensor]:
    parts = {"detector.query_init.content": table[:num_queries]}
    if len(table) > num_queries:
        parts["schemes.hybrid.queries.content"] = table[num_queries:]
    return parts


def neck_rules(official: Mapping[str, Tensor]) -> Rules:
    """Rules for the neck, whose 1x1 convolutions project the backbone's maps, while the others
    compute extra levels.
    """
    levels = sorted({int(k.split(".")[1]) for k in official if re.match(r"input_proj\.\d+\.", k)})
    weights = {i: official.get(f"input_proj.{i}.0.weight") for i in levels}
    extra = [i for i, value in weights.items() if value is not None and value.shape[-1] > 1]
    places = {i: f"extra.{extra.index(i)}" if i in extra else f"maps.{i}" for i in levels}
    return [(rf"input_proj\.{i}\.(.*)", rf"detector.neck.{at}.\1") for i, at in places.items()]


def only_coco_rows(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the rows of COCO's 80 classes in class embeddings of 91 rows.

    In the encoder's embedding the first of these is row 0, which ranks proposals of any class.
    """
    numbers = {int(key.split(".")[1]) for key in official if key.startswith("class_embed.")}
    encoder = f"class_embed.{max(numbers)}."
    rows = torch.tensor(COCO.category_ids)
    ranked = torch.cat([rows.new_zeros(1), rows[1:]])
    return {
        key: value[ranked if key.startswith(encoder) else rows]
        if key.startswith("class_embed.") and len(value) == CATEGORY_ROWS
        else value
        for key, value in official.items()
    }
