"""Deformable attention on the CPU, from PyTorch's embedding bag: no compiler needed.

A level with a border of zeros is a table of rows, one per pixel and head. The four pixels around
a point lie at four fixed distances in it, so that a level is four embedding bags (gather and
weighted sum in one pass) over four views of the table. No sample is kept: the backward pass finds
the points again, sorts them by row and is an embedding bag over the gradient, in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codetr.ops.msda_reference import Shapes


class Points(NamedTuple):
    """Where the points of a level lie, each (Q, heads, P)."""

    row: Tensor  # int32, of the pixel left of and above each point, in the level's table
    dx: Tensor  # from there, in pixels: 0 to 1
    dy: Tensor


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """(B, Q, heads * D); arguments as of ``codetr.ops.multi_scale_deformable_attention``."""
    batch, queries, heads, _, points, _ = locations.shape
    dim = value.shape[3]
    locations, weights = locations.contiguous(), weights.contiguous()
    out = locations.new_zeros(batch, queries * heads, dim)
    for image, sums in enumerate(out):
        for level, (table, shape) in enumerate(_tables(value[image], shapes, locations.dtype)):
            at = _locate(locations[image, :, :, level], shape)
            row = at.row.view(-1, points)
            shares = _corner_shares(at, weights[image, :, :, level])
            for distance, share in zip(_distances(shape, heads), shares, strict=True):
                sums += F.embedding_bag(
                    row, table[distance:], mode="sum", per_sample_weights=share.view(-1, points)
                )
    return out.view(batch, queries, heads * dim).to(value.dtype)


def backward(
    grad_out: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights for that of ``forward``'s result."""
    grad_value = value.new_empty(value.shape)
    grad_locations = locations.new_empty(locations.shape)
    grad_weights = weights.new_empty(weights.shape)
    locations, weights = locations.contiguous(), weights.contiguous()
    areas = [h * w for h, w in shapes]
    for image, grad_image in enumerate(grad_value):
        grad = grad_out[image].reshape(-1, value.shape[3]).to(locations.dtype)
        tables = _tables(value[image], shapes, locations.dtype)
        for level, ((table, shape), grad_level) in enumerate(
            zip(tables, grad_image.split(areas), strict=True)
        ):
            here = (image, slice(None), slice(None), level)
            at = _locate(locations[here], shape)
            grad_locations[here], grad_weights[here] = _point_gradients(
                grad, table, at, locations[here], weights[here], shape
            )
            grad_level.copy_(_value_gradient(grad, at, weights[here], shape))
    return grad_value, grad_locations, grad_weights


def _tables(
    tokens: Tensor, shapes: Shapes, dtype: torch.dtype
) -> list[tuple[Tensor, tuple[int, int]]]:
    """For each level its ((H + 2) * (W + 2) * heads, D) table and (H, W)."""
    levels = tokens.to(dtype).split([h * w for h, w in shapes])
    return [
        (F.pad(x.unflatten(0, shape), (0, 0, 0, 0, 1, 1, 1, 1)).flatten(0, 2), shape)
        for x, shape in zip(levels, shapes, strict=True)
    ]


def _distances(shape: tuple[int, int], heads: int) -> tuple[int, int, int, int]:
    """In rows of the table, to a pixel's own place, right, below, and right below."""
    line = (shape[1] + 2) * heads
    return 0, heads, line, line + heads


def _locate(locations: Tensor, shape: tuple[int, int]) -> Points:
    """Points off the map come to lie where the border counts alone: their sample is zero."""
    height, width = shape
    heads = locations.shape[1]
    x = (locations[..., 0] * width - 0.5).clamp_(-1, width)
    y = (locations[..., 1] * height - 0.5).clamp_(-1, height)
    # clamped as integers too: of what is not a number the index is valid, the share still is not
    left = x.floor().to(torch.int32).clamp_(-1, width - 1)
    top = y.floor().to(torch.int32).clamp_(-1, height - 1)
    head = torch.arange(heads, dtype=torch.int32)[:, None]
    row = ((top + 1) * (width + 2)).add_(left).add_(1).mul_(heads).add_(head)
    return Points(row, x.sub_(left), y.sub_(top))


def _corner_shares(at: Points, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How much of each corner goes into the sum, in the order of ``_distances``."""
    below = weights * at.dy
    above = weights - below
    right_below, right_above = below * at.dx, above * at.dx
    return above - right_above, right_above, below - right_below, right_below


def _point_gradients(
    grad: Tensor, table: Tensor, at: Points, locations: Tensor, weights: Tensor,
    shape: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of a level's locations and weights: how well each corner matches ``grad``,
    then what bilinear interpolation makes of that.
    """
    height, width = shape
    bags, points = len(grad), weights.shape[2]
    starts = torch.arange(0, bags * points, points, dtype=torch.int32)
    bag = torch.arange(bags, dtype=torch.int32).repeat_interleave(points)
    here, right, below, right_below = (
        torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, table[distance:], at.row.view(-1), starts, bag, 0
        ).view_as(at.row)
        for distance in _distances(shape, weights.shape[1])
    )
    grad_x = torch.lerp(right - here, right_below - below, at.dy).mul_(weights).mul_(width)
    grad_y = torch.lerp(below - here, right_below - right, at.dx).mul_(weights).mul_(height)
    grad_locations = torch.stack([grad_x, grad_y], dim=-1)
    size = locations.new_tensor([width, height])
    pixel = locations * size - 0.5
    off_map = ((pixel < -1) | (pixel >= size)).any(-1, keepdim=True)
    upper, lower = torch.lerp(here, right, at.dx), torch.lerp(below, right_below, at.dx)
    return grad_locations.masked_fill_(off_map, 0.0), torch.lerp(upper, lower, at.dy)


def _value_gradient(grad: Tensor, at: Points, weights: Tensor, shape: tuple[int, int]) -> Tensor:
    """(H * W, heads, D): to each row, the gradients of all points that it has a share in."""
    height, width = shape
    heads, points = weights.shape[1:]
    rows = (height + 2) * (width + 2) * heads
    sorted_rows, order = at.row.view(-1).sort(stable=True)
    starts = torch.searchsorted(sorted_rows, torch.arange(rows, dtype=torch.int32))
    bag = torch.div(order, points, rounding_mode="floor")
    table = grad.new_zeros(rows, grad.shape[1])
    shares = _corner_shares(at, weights)
    for distance, share in zip(_distances(shape, heads), shares, strict=True):
        table[distance:] += F.embedding_bag(
            bag,
            grad,
            starts[: rows - distance],
            mode="sum",
            per_sample_weights=share.view(-1)[order],
        )
    inner = table.unflatten(0, (height + 2, width + 2, heads))[1:-1, 1:-1]
    return inner.flatten(0, 1)
