"""Pretrained weights for an EVA-02 trunk: timm's names, other patch sizes, other grids."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr.errors import UserError
from codetr.models.backbones.weights import LoadReport, load_named_weights

TIMM_NAMES = {
    "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias",
    "mlp.fc1_g.": "mlp.w1.",
    "mlp.fc1_x.": "mlp.w2.",
    "mlp.norm.": "mlp.ffn_ln.",
    "mlp.fc2.": "mlp.w3.",
}
"""Official names of the parts of a block, by timm's."""

KERNEL, POSITIONS = "patch_embed.proj.weight", "pos_embed"


def load_trunk_weights(trunk: nn.Module, weights: Mapping[str, Tensor], source: str) -> LoadReport:
    """Load ``weights`` into ``trunk`` in place, as ``load_named_weights`` does, after fitting."""
    own = trunk.state_dict()
    fitted = {official_name(name): value for name, value in weights.items()}
    for name, value in fitted.items():
        if name.endswith(KERNEL) and value.ndim == 4:
            fitted[name] = _resized(value.float(), own[KERNEL].shape[-1])
        elif name.endswith(POSITIONS):
            fitted[name] = fit_positions(value.float(), own[POSITIONS].shape[1], source)
    return load_named_weights(trunk, fitted, source)


def official_name(name: str) -> str:
    """The official name of one of timm's; official names stay."""
    for theirs, official in TIMM_NAMES.items():
        name = name.replace(f".{theirs}", f".{official}")
    return name


def fit_positions(table: Tensor, rows: int, source: str) -> Tensor:
    """A table (1, 1 + n * n, C) of a class token and a square grid, with ``rows`` rows: the grid
    is resized, the class token stays. Raises UserError for a table of another form.
    """
    side = math.isqrt(max(table.shape[1] - 1, 0)) if table.ndim == 3 else 0
    if side == 0 or 1 + side**2 != table.shape[1]:
        raise UserError(
            f"{source}: pos_embed has shape {tuple(table.shape)}: give weights with a class token "
            "and a square table of positions"
        )
    wanted = math.isqrt(rows - 1)
    grid = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = _resized(grid, wanted).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([table[:, :1], grid], dim=1)


def _resized(maps: Tensor, side: int) -> Tensor:
    """(..., n, n) to (..., side, side), bicubic without antialiasing, as officially."""
    return F.interpolate(maps, (side, side), mode="bicubic", align_corners=False)
