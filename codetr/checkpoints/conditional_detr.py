"""Conversion of official checkpoints of Conditional DETR (Atten4Vis), DAB-DETR and DN-DETR
(IDEA-Research).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from codetr.checkpoints.renaming import DROPPED, Conversion, Rules, convert_by, perceptron

CLASS_EMBEDDING = "class_embed.weight"
MARKS = (CLASS_EMBEDDING, "transformer.decoder.layers.0.ca_qpos_sine_proj.weight")
"""Names by which a state dict is recognised."""
CLASS_ROWS = r"class_embed\.(weight|bias)|label_enc\.weight"
"""Tensors with a row per class; the table of labels has a further row at the end."""
_LABELS = "label_enc.weight"
_LAYERS = r"transformer\.(encoder|decoder)\.(layers\.\d+)\."
_ENCODER = r"transformer\.encoder\.(layers\.\d+)\."
_DECODER = r"transformer\.decoder\.(layers\.\d+)\."
_EMBED = r"transformer\.decoder\.ref_point_head"
_SIZE = r"transformer\.decoder\.ref_anchor_head"

RULES: Rules = (
    (r"transformer\.decoder\.bbox_embed\..*", DROPPED),  # duplicates
    (r".*\.num_batches_tracked", DROPPED),
    (r"backbone\.0\.(body\..*)", r"detector.backbone.\1"),
    (r"input_proj\.(.*)", r"detector.neck.project.\1"),
    (r"query_embed\.weight", r"detector.query_init.position"),
    (r"refpoint_embed\.weight", r"detector.query_init.anchors"),
    (_ENCODER + r"self_attn\.in_proj_(.*)", r"detector.encoder.\1.attention.in_proj.\2"),
    (_ENCODER + r"self_attn\.(out_proj\..*)", r"detector.encoder.\1.attention.\2"),
    (_ENCODER + r"norm1\.(.*)", r"detector.encoder.\1.attention_norm.\2"),
    (_ENCODER + r"norm2\.(.*)", r"detector.encoder.\1.feed_forward_norm.\2"),
    (_LAYERS + r"linear1\.(.*)", r"detector.\1.\2.feed_forward.expand.\3"),
    (_LAYERS + r"linear2\.(.*)", r"detector.\1.\2.feed_forward.contract.\3"),
    (_LAYERS + r"activation\.(.*)", r"detector.\1.\2.feed_forward.activation.\3"),
    *(
        (
            _DECODER + rf"{short}_{official}_proj\.(.*)",
            rf"detector.decoder.\1.{attention}.{ours}.\2",
        )
        for short, attention in (("sa", "self_attention"), ("ca", "cross_attention"))
        for official, ours in (
            ("qcontent", "query_content"),
            ("qpos", "query_position"),
            ("qpos_sine", "query_sine"),
            ("kcontent", "key_content"),
            ("kpos", "key_position"),
            ("v", "value"),
        )
    ),
    (_DECODER + r"(self|cross)_attn\.(out_proj\..*)", r"detector.decoder.\1.\2_attention.\3"),
    (_DECODER + r"norm1\.(.*)", r"detector.decoder.\1.self_attention_norm.\2"),
    (_DECODER + r"norm2\.(.*)", r"detector.decoder.\1.cross_attention_norm.\2"),
    (_DECODER + r"norm3\.(.*)", r"detector.decoder.\1.feed_forward_norm.\2"),
    (r"transformer\.decoder\.norm\.(.*)", r"detector.decoder.norm.\1"),
    *perceptron(r"transformer\.decoder\.query_scale", "detector.decoder.sine_scale", 2),
    (r"class_embed\.(.*)", r"detector.head.classify.0.\1"),
    *perceptron("bbox_embed", "detector.head.regress.0", 3),
)

POINTS: Rules = perceptron(_EMBED, "detector.query_init.reference_points", 2)
"""Rules for Conditional DETR only."""

BOXES: Rules = (
    *perceptron(_EMBED, "detector.decoder.spatial.embed.mlp", 2),
    *perceptron(_SIZE, "detector.decoder.spatial.wanted_size", 2),
    *perceptron(r"transformer\.encoder\.query_scale", "detector.encoder.position_scale", 2),
)
"""Rules for DAB-DETR and DN-DETR only."""

_PATTERNS = r"transformer\.patterns\.weight"
PATTERNS: Rules = ((_PATTERNS, r"detector.query_init.content.patterns"),)
PATTERNS_OF_LABELLED: Rules = ((_PATTERNS, r"detector.query_init.content.patterns.patterns"),)


def convert_conditional_detr(official: Mapping[str, Tensor]) -> Conversion:
    """Convert an official state dict of one of the three.

    DN-DETR's table of labels is split: its last row, for an unknown label, belongs to the detector,
    the others to the training scheme.
    """
    own = BOXES if "refpoint_embed.weight" in official else POINTS
    labelled = _LABELS in official
    rules = (*own, *(PATTERNS_OF_LABELLED if labelled else PATTERNS), *RULES)
    if not labelled:
        return convert_by(official, rules)
    *known, unknown = official[_LABELS].split([len(official[_LABELS]) - 1, 1])
    labels = {
        "schemes.query_denoising.label_embedding.weight": known[0],
        "detector.query_init.content.label": unknown[0],
    }
    return convert_by(official, rules, {_LABELS: labels})
