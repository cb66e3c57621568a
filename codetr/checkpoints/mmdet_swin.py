"""Conversion of mmdetection's Swin Transformer (2.x and 3.x) to the original, which Sense-X uses.

mmdetection renamed the parameters. It also merges patches by ``nn.Unfold``, which orders the 4 C
channels of a merged cell as (channel, row, column), while the original concatenates the four cells:
(column, row, channel). Weights over these channels are permuted; nothing else differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from codetr.checkpoints.renaming import Rules, rename

_BLOCK = r"stages\.(\d+)\.blocks\.(\d+)\."
_FROM_MMDET: Rules = (
    (r"patch_embed\.projection\.(.*)", r"patch_embed.proj.\1"),
    (_BLOCK + r"attn\.w_msa\.(.*)", r"layers.\1.blocks.\2.attn.\3"),
    (_BLOCK + r"ffn\.layers\.0\.0\.(.*)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
    (_BLOCK + r"ffn\.layers\.1\.(.*)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
    (_BLOCK + r"(norm[12]\..*)", r"layers.\1.blocks.\2.\3"),
    (r"stages\.(\d+)\.downsample\.(.*)", r"layers.\1.downsample.\2"),
)

_PREFIX = "backbone."


def is_mmdet_swin(state: Mapping[str, Tensor]) -> bool:
    """Whether the backbone of a state dict (a detector's, or a backbone's alone) is a Swin
    Transformer under mmdetection's names.
    """
    return any(
        re.match(_BLOCK + r"attn\.w_msa\.", name.removeprefix(_PREFIX)) is not None
        for name in state
    )


def to_official_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert mmdetection's Swin to the original names and order of channels.

    ``state`` is a detector's (``backbone.stages...``) or a backbone's (``stages...``); other names
    are kept.
    """
    converted = {}
    for name, value in state.items():
        prefix = _PREFIX if name.startswith(_PREFIX) else ""
        renamed = rename(name.removeprefix(prefix), _FROM_MMDET)
        merges = renamed is not None and ".downsample." in renamed
        converted[name if renamed is None else prefix + renamed] = (
            from_unfold_order(value) if merges else value
        )
    return converted


def from_unfold_order(weight: Tensor) -> Tensor:
    """Permute (..., 4 C) from the order (channel, row, column) to (column, row, channel)."""
    return weight.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)
