"""Deformable attention in plain PyTorch operations: the oracle, and the path that exports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = tuple[tuple[int, int], ...]


def sample_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """One ``grid_sample`` per level, then the weighted sum; arguments and result as in
    ``codetr.models.ops.multi_scale_deformable_attention``. Any device, differentiable any number of
    times, but every sample is kept: 4 * D * L * P bytes per query and head.
    """
    with torch.autocast(value.device.type, enabled=False):
        out = _sample(value.to(locations.dtype), shapes, locations, weights)
    return out.to(value.dtype)


def _sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
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
