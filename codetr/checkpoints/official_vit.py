"""Official names of the parts that only Co-DETR's ViT recipes have, and ours.

In the style of ``official.RULES``, to be tried before them: pairs of a pattern for a whole key and
its new name, ``{head0}`` in it being our name of the official auxiliary head 0; an empty name
drops the key.
"""

from __future__ import annotations

_BOX_HEAD = "schemes.collaborative.heads.{head0}.box_head."

SFP_RULES: tuple[tuple[str, str], ...] = (
    # Branches number their layers as ours do.
    (r"neck\.(p[2-6])\.(.*)", r"detector.neck.levels.\1.\2"),
)

VIT_RULES: tuple[tuple[str, str], ...] = (
    # Training with averaged weights keeps the others under such names; the plain ones are averaged.
    (r"ema_.*", ""),
    # Tables of rotations, once for all and again in every block: ours are computed.
    (r"backbone\.(?:.*\.)?rope(?:_\w+)?\.freqs_(?:cos|sin)", ""),
    (
        r"roi_head\.0\.bbox_head\.shared_convs\.(\d+)\.conv\.(.*)",
        _BOX_HEAD + r"convs.\1.conv.\2",
    ),
    (
        r"roi_head\.0\.bbox_head\.shared_convs\.(\d+)\.gn\.(.*)",
        _BOX_HEAD + r"convs.\1.norm.\2",
    ),
)
