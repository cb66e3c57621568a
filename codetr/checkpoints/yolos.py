"""Conversion of official YOLOS checkpoints (hustvl/YOLOS)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from codetr.checkpoints.renaming import Conversion, Rules, convert_by, perceptron

CLASS_EMBEDDING = "class_embed.layers.2.weight"
"""Its rows are COCO's category ids, followed by background."""
MARKS = (CLASS_EMBEDDING, "backbone.det_token")
"""Names by which a state dict is recognised."""

RULES: Rules = (
    (r"backbone\.(.*)", r"detector.backbone.body.\1"),
    *perceptron("class_embed", "detector.head.classify", 3),
    *perceptron("bbox_embed", "detector.head.regress", 3),
)


def convert_yolos(official: Mapping[str, Tensor]) -> Conversion:
    """Convert an official state dict."""
    return convert_by(official, RULES)
