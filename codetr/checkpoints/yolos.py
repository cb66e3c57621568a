"""Names of the official YOLOS checkpoints (hustvl/YOLOS) and ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from codetr.checkpoints.official import Conversion
from codetr.checkpoints.renaming import Rules, convert_by

CLASS_EMBEDDING = "class_embed.layers.2.weight"
"""Its rows are COCO's category ids, and background at the end."""

RULES: Rules = (
    (r"backbone\.(.*)", r"detector.backbone.body.\1"),
    (r"class_embed\.layers\.0\.(.*)", r"detector.head.classify.0.\1"),
    (r"class_embed\.layers\.1\.(.*)", r"detector.head.classify.2.\1"),
    (r"class_embed\.layers\.2\.(.*)", r"detector.head.classify.4.\1"),
    (r"bbox_embed\.layers\.0\.(.*)", r"detector.head.regress.0.\1"),
    (r"bbox_embed\.layers\.1\.(.*)", r"detector.head.regress.2.\1"),
    (r"bbox_embed\.layers\.2\.(.*)", r"detector.head.regress.4.\1"),
)


def is_yolos(official: Mapping[str, Tensor]) -> bool:
    """Whether names are those of YOLOS."""
    return "backbone.det_token" in official and CLASS_EMBEDDING in official


def convert_yolos(official: Mapping[str, Tensor]) -> Conversion:
    """Rename an official state dict."""
    return convert_by(official, RULES)
