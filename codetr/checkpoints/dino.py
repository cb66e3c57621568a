"""Conversion of official DINO checkpoints (IDEA-Research).

Their names are mostly those of two-stage Deformable DETR (``h_detr``). All decoder layers share one
class and one box embedding, saved under each layer's name.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from codetr.checkpoints import h_detr
from codetr.checkpoints.renaming import DROPPED, Conversion, Rules, convert_by, perceptron

CLASS_EMBEDDING = h_detr.CLASS_EMBEDDING
CLASS_ROWS = (
    r"(transformer\.decoder\.)?class_embed\.\d+\..*|transformer\.enc_out_class_embed\..*"
    r"|label_enc\.weight"
)
"""Tensors with at least one row per class."""
_LABELS = "label_enc.weight"
MARKS = (CLASS_EMBEDDING, "transformer.enc_out_class_embed.weight")
"""Names by which a state dict is recognised."""

RULES: Rules = (
    (r"(class|bbox)_embed\.[1-9]\d*\..*", DROPPED),  # duplicates of the first layer's
    (r"transformer\.tgt_embed\.weight", r"detector.query_init.content"),
    *perceptron(r"transformer\.decoder\.ref_point_head", "detector.decoder.anchor_position.mlp", 2),
    (r"transformer\.decoder\.norm\.(.*)", r"detector.decoder.norm.\1"),
    (r"transformer\.enc_out_class_embed\.(.*)", r"detector.head.classify.1.\1"),
    *perceptron(r"transformer\.enc_out_bbox_embed", "detector.head.regress.1", 3),
    (r"label_enc\.weight", r"schemes.denoising.label_embedding.weight"),
    *h_detr.RULES,
)


def convert_dino(official: Mapping[str, Tensor]) -> Conversion:
    """Convert an official state dict. Its table of labels has unused rows beyond the classes, which
    are removed.
    """
    classes = len(official[CLASS_EMBEDDING])
    labels = {_LABELS: official[_LABELS][:classes]} if _LABELS in official else {}
    levels = {int(key.split(".")[1]) for key in official if key.startswith("input_proj.")}
    return convert_by({**official, **labels}, (*_neck(len(levels)), *RULES))


def _neck(levels: int) -> Rules:
    """Rules for a neck with that many levels, of which the last is computed from the one before."""
    last = levels - 1
    maps = [(rf"input_proj\.{i}\.(.*)", rf"detector.neck.maps.{i}.\1") for i in range(last)]
    return (*maps, (rf"input_proj\.{last}\.(.*)", r"detector.neck.extra.0.\1"))
