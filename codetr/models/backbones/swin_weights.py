"""Weights of Swin Transformers from elsewhere, under the names of the original code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from codetr.errors import UserError
from codetr.models.backbones.weights import LoadReport, load_named_weights

_TABLE = "relative_position_bias_table"
_MERGING = re.compile(r"(.*layers[._])(\d+)([._]downsample[._].*)")


def load_swin_weights(trunk: nn.Module, weights: Mapping[str, Tensor], source: str) -> LoadReport:
    """Load the original Swin weights, an official Co-DETR detector's, or timm's into ``trunk``.

    Position biases made for windows of another size are interpolated, as officially. The output
    norms ``norm0`` to ``norm3`` may be missing (pretraining has none). Prints a table; ``source``
    names the weights in it and in messages. Raises UserError where anything else is missing.
    """
    if any(".attn.w_msa." in name for name in weights):
        raise UserError(
            f"{source}: a Swin Transformer in mmdetection's layout: give the detector that it "
            "belongs to as checkpoint=official:FILE, or Swin's original file"
        )
    tables = (value for name, value in trunk.state_dict().items() if name.endswith(_TABLE))
    rows = len(next(tables))
    renamed = {
        name: resize_bias_table(value, rows) if name.endswith(_TABLE) else value
        for name, value in merge_at_the_end(weights).items()
    }
    return load_named_weights(trunk, renamed, source, may_lack=re.compile(r"norm\d\.").match)


def merge_at_the_end(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm has patch merging at the start of a stage, the original at the end of the one before:
    the former's names to the latter's; original names stay.
    """
    found = {name: _MERGING.fullmatch(name) for name in weights}
    if any(match and match[2] == "0" for match in found.values()):
        return dict(weights)
    return {
        f"{match[1]}{int(match[2]) - 1}{match[3]}" if (match := found[name]) else name: value
        for name, value in weights.items()
    }


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Position biases (S * S, heads) of one window size to (``rows``, heads) of another, bicubic
    over the S x S relative positions, as mmcv_custom/checkpoint.py of the official code does.
    """
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    grid = F.interpolate(table.T.unflatten(1, (old, old))[None], size=(new, new), mode="bicubic")
    return grid[0].flatten(1).T
