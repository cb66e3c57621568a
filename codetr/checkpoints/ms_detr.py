"""Conversion of official MS-DETR checkpoints (Atten4Vis).

Their names are those of two-stage Deformable DETR, with ``linear3``, ``linear4`` and ``norm4`` in
every decoder layer: the one-to-many branch, which is used in training only.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from codetr.checkpoints import h_detr
from codetr.checkpoints.renaming import Conversion, Rules, convert_by

MARKS = (*h_detr.MARKS, "transformer.decoder.layers.0.linear3.weight")
"""Names by which a state dict is recognised."""

_DECODER = r"transformer\.decoder\.layers\.(\d+)\."
_BRANCH = r"schemes.mixed.branches.\1."

RULES: Rules = (
    (_DECODER + r"linear3\.(.*)", _BRANCH + r"feed_forward.expand.\2"),
    (_DECODER + r"linear4\.(.*)", _BRANCH + r"feed_forward.contract.\2"),
    (_DECODER + r"norm4\.(.*)", _BRANCH + r"norm.\2"),
    (r"query_embed\.weight", r"detector.query_init.content"),
    *h_detr.RULES,
)


def convert_ms_detr(official: Mapping[str, Tensor]) -> Conversion:
    """Convert an official state dict."""
    return convert_by(official, RULES)
