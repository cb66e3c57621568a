"""Self-attention among queries and deformable attention to feature maps, residuals included."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codetr.models.ops import multi_scale_deformable_attention


class SelfAttention(nn.Module):
    """Multi-head attention with positions added to queries and keys but not to values."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"model.dim={dim} must be a multiple of model.heads={heads}")
        self.heads = heads
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.attention_dropout = dropout
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q, C) to (B, Q, C); ``mask``, broadcast to (B, heads, Q, Q), is added to the scores:
        0 where a query may attend, -inf where not. It has the dtype that the scores have; a bool
        one (True = may attend) is turned into such a mask.
        """
        dim = x.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        query, key = F.linear(x + position, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        value = F.linear(x, weight[2 * dim :], bias[2 * dim :])
        attended = F.scaled_dot_product_attention(
            self._split(query),
            self._split(key),
            self._split(value),
            attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return x + self.dropout(self.out_proj(attended.transpose(-3, -2).flatten(-2)))


class SamplingFrame(NamedTuple):
    """The frame of reference of sampling offsets: ``origin`` (B, Q, 1, L * P * 2) and ``unit``,
    which broadcasts to it, both relative to each level; x and y of every point of every level.
    """

    origin: Tensor
    unit: Tensor


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (arXiv 2010.04159, equation 3).

    References with two coordinates are centres, and offsets count cells of the sampled level;
    with four they are boxes, and offsets are relative to half the box divided by ``points``.
    """

    def __init__(
        self, dim: int, heads: int, levels: int, points: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as ``points`` steps along one direction per head; weights start equal."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        offsets = directions[:, None, None] * steps[None, None, :, None]
        with torch.no_grad():
            bias = offsets.expand(-1, self.levels, -1, -1).reshape(-1)
            self.sampling_offsets.bias.copy_(bias)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        frame: SamplingFrame,
        tokens: Tensor,
        padding: Tensor,
        shapes: tuple[tuple[int, int], ...],
    ) -> Tensor:
        """Args: ``x`` (B, Q, C) and its ``position``; ``frame`` of the queries' references;
        ``tokens`` (B, S, C) with ``padding`` (B, S), True = padding; ``shapes`` (H, W)
        per level. Returns (B, Q, C).
        """
        value = self.value_proj(tokens).masked_fill(padding[..., None], 0.0)
        locations, weights = self.samples(x, position, frame)
        sampled = multi_scale_deformable_attention(
            value.unflatten(-1, (self.heads, -1)), shapes, locations, weights
        )
        return x + self.dropout(self.output_proj(sampled))

    def samples(self, x: Tensor, position: Tensor, frame: SamplingFrame) -> tuple[Tensor, Tensor]:
        """The sampling points of ``x`` (B, Q, C) with its ``position``: locations
        (B, Q, heads, L, P, 2) as (x, y) in [0, 1] relative to each level, and weights
        (B, Q, heads, L, P), which sum to 1 over the levels and points of a head.
        """
        query, dtype = x + position, frame.origin.dtype
        weights = self.attention_weights(query).to(dtype)
        weights = weights.unflatten(-1, (self.heads, -1)).softmax(-1)
        locations = self._locations(frame, self.sampling_offsets(query))
        return locations, weights.unflatten(-1, (self.levels, self.points))

    def frame(self, references: Tensor, shapes: tuple[tuple[int, int], ...]) -> SamplingFrame:
        """Of ``references`` (B, Q, L, 2 or 4) relative to each level, whose (H, W) are ``shapes``:
        the same for every layer with as many points.
        """
        if references.shape[-1] == 2:
            # filled on the device: a copy from the host would synchronise with it
            sizes = [references.new_full((), n) for h, w in shapes for n in (w, h)]
            unit = torch.stack(sizes).reciprocal().view(-1, 2)
        else:
            unit = references[:, :, None, :, 2:] * (0.5 / self.points)
        origin = self._per_point(references[:, :, None, :, :2])
        return SamplingFrame(origin, self._per_point(unit))

    def _locations(self, frame: SamplingFrame, offsets: Tensor) -> Tensor:
        """(B, Q, heads, L, P, 2) sampling locations, relative to each level; ``offsets``
        (B, Q, heads * L * P * 2) are the output of their layer.
        """
        offsets = offsets.to(frame.origin.dtype).unflatten(-1, (self.heads, -1))
        locations = torch.addcmul(frame.origin, offsets, frame.unit)
        return locations.unflatten(-1, (self.levels, self.points, 2))

    def _per_point(self, per_level: Tensor) -> Tensor:
        """(..., L, 2) to (..., L * P * 2): on the CPU, arithmetic along one long dimension is
        several times as fast as along one of two numbers.
        """
        return per_level[..., None, :].expand(*per_level.shape[:-1], self.points, 2).flatten(-3)
