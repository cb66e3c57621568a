"""Multi-scale deformable attention: the sampling core, without parameters.

Deformable DETR (arXiv 2010.04159), equation 3; same convention as the official operator: a
location x samples a level at pixel ``x * W - 0.5``, bilinear, taps outside the level are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def multi_scale_deformable_attention(
    value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples of all levels.

    Args:
        value: (B, S, heads, D), levels one after the other, each row by row.
        shapes: (H, W) of each level; their areas sum to S.
        locations: (B, Q, heads, L, P, 2) as (x, y), 0 to 1 spans a level's whole extent. Keep
            them in float32 under mixed precision: bf16 has steps of a pixel there.
        weights: (B, Q, heads, L, P).

    Returns:
        (B, Q, heads * D) in the dtype of ``value``. The arithmetic is done in that of
        ``locations``.
    """
    with torch.autocast(value.device.type, enabled=False):
        out = _sample_levels(
            value.to(locations.dtype), shapes, locations, weights.to(locations.dtype)
        )
    return out.to(value.dtype)


def _sample_levels(
    value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> Tensor:
    batch, _, heads, dim = value.shape
    num_queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*heads, Q, L, P, 2)
    shares = weights.transpose(1, 2).flatten(0, 1)  # (B*heads, Q, L, P)
    out = value.new_zeros(batch * heads, dim, num_queries)
    for level, tokens in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        feature_map = tokens.permute(0, 2, 3, 1).reshape(batch * heads, dim, *shapes[level])
        samples = F.grid_sample(
            feature_map, grids[:, :, level], padding_mode="zeros", align_corners=False
        )  # (B*heads, D, Q, P)
        out = out + (samples * shares[:, None, :, level]).sum(-1)
    return out.view(batch, heads * dim, num_queries).transpose(1, 2)
