"""The original Swin Transformer under mmdetection's names: what the converter has to undo."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
RULES = (
    (r"patch_embed\.proj\.(.*)", r"patch_embed.projection.\1"),
    (BLOCK + r"attn\.(.*)", r"stages.\1.blocks.\2.attn.w_msa.\3"),
    (BLOCK + r"mlp\.fc1\.(.*)", r"stages.\1.blocks.\2.ffn.layers.0.0.\3"),
    (BLOCK + r"mlp\.fc2\.(.*)", r"stages.\1.blocks.\2.ffn.layers.1.\3"),
    (BLOCK + r"(norm[12]\..*)", r"stages.\1.blocks.\2.\3"),
    (r"layers\.(\d+)\.downsample\.(.*)", r"stages.\1.downsample.\2"),
)


def to_mmdet_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector's or a backbone's state dict; names of other parts stay as they are."""
    renamed = {}
    for name, value in state.items():
        inner = name.removeprefix("backbone.")
        matches = (
            m.expand(new) for rule, new in RULES if (m := re.fullmatch(rule, inner)) is not None
        )
        new = next(matches, inner)
        renamed[name.removesuffix(inner) + new] = (
            to_unfold_order(value) if ".downsample." in new else value
        )
    return renamed


def to_unfold_order(weight: Tensor) -> Tensor:
    """(..., 4 C) over (column, row, channel) to (channel, row, column)."""
    return weight.unflatten(-1, (2, 2, -1)).transpose(-3, -1).flatten(-3)
