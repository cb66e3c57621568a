"""Deformable attention on the CPU, compiled by numba when it first runs.

Every thread takes a part of the queries in the forward pass and a part of the heads in the
backward pass, so that no two of them add to the same number: results do not depend on how many
threads there are. No sample is kept for the backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codetr.compiled import compiled
from codetr.models.ops.msda_reference import Shapes

UNROLLED = (16, 32, 64)
"""Head widths that are compiled as constants; any other is compiled once, and slower."""

WORTH_A_THREAD = 2**21
"""Products below which handing work to one more thread costs more than it brings."""

Array = NDArray[Any]


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """(B, Q, heads * D); arguments as of ``codetr.models.ops.multi_scale_deformable_attention``."""
    given = _Arguments(value, shapes, locations, weights)
    batch, queries, heads = locations.shape[:3]
    out = np.empty((batch, queries, heads, value.shape[3]), given.value.dtype)
    _share_out(lambda i, n: _sample(*given.all, out, given.lanes, i, n), batch * queries, given)
    return torch.from_numpy(out).flatten(2).to(value.dtype)


def backward(
    grad_out: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights for that of ``forward``'s result."""
    # (B, heads, S, D): a thread serves one head at a time, whose rows then share the cache
    given = _Arguments(value.transpose(1, 2), shapes, locations, weights)
    batch, queries, heads = locations.shape[:3]
    grad = _array(grad_out, locations.dtype).reshape(batch, queries, heads, value.shape[3])
    grads = (
        np.zeros(given.value.shape, given.value.dtype),
        np.empty(given.locations.shape, given.locations.dtype),
        np.empty(given.weights.shape, given.weights.dtype),
    )
    _share_out(
        lambda i, n: _differentiate(*given.all, grad, *grads, given.lanes, i, n),
        batch * heads,
        given,
    )
    grad_value, grad_locations, grad_weights = map(torch.from_numpy, grads)
    return (
        grad_value.transpose(1, 2).to(value.dtype).contiguous(),
        grad_locations.view(locations.shape),
        grad_weights.view(weights.shape).to(weights.dtype),
    )


class _Arguments:
    """What both passes read, as contiguous arrays of one dtype; the samples of all levels are
    one dimension, and ``levels`` tells every sample's height, width and first row.
    """

    def __init__(self, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
        self.value = _array(value, locations.dtype)
        self.locations = _array(locations.flatten(3, 4), locations.dtype)
        self.weights = _array(weights.flatten(3), locations.dtype)
        areas = [height * width for height, width in shapes]
        first = np.cumsum([0, *areas[:-1]])
        self.levels = np.repeat(
            np.array([*zip(*shapes, strict=True), first], np.int32), weights.shape[4], axis=1
        )
        width = value.shape[3]
        # the length of a tuple is a constant to the compiler, that of an array is not
        self.lanes = (0,) * width if width in UNROLLED else np.zeros(width, np.int64)
        self.products = weights.numel() * width

    @property
    def all(self) -> tuple[Array, Array, Array, Array]:
        return self.value, self.levels, self.locations, self.weights


def _array(x: Tensor, dtype: torch.dtype) -> Array:
    array: Array = x.detach().to(dtype).contiguous().numpy()
    return array


def _share_out(run: Callable[[int, int], None], units: int, given: _Arguments) -> None:
    """Cut 0 to ``units`` into one range per thread that torch may use."""
    threads = min(torch.get_num_threads(), units, 1 + given.products // WORTH_A_THREAD)
    if threads <= 1:
        return run(0, units)
    edges = np.linspace(0, units, threads + 1).astype(int).tolist()
    for _ in _pool(threads).map(run, edges[:-1], edges[1:]):
        pass  # waits, and raises what a thread raised
    return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "deformable-attention")


if hasattr(os, "register_at_fork"):  # a forked process has no threads of the pool
    os.register_at_fork(after_in_child=_pool.cache_clear)


_compiled = compiled(fastmath={"reassoc", "contract", "nsz"})
"""Sums may be reordered, so that they can use vectors; what is not a number stays so."""


@_compiled
def _corners(levels, locations, rows, inside, right, below):  # type: ignore[no-untyped-def]
    """For the samples of one query and head: the four pixels around each as ``rows`` of the
    tokens, valid in any case; whether each lies on the map (1 or 0); and how far the sample lies
    to the ``right`` of and ``below`` the first. Nothing here branches: that is faster than to
    leave out the samples off the map, whose corners count 0 times what ``rows`` name.
    """
    number = right.dtype.type
    zero, half, one = number(0), number(0.5), number(1)
    none, next_ = np.int32(0), np.int32(1)
    for k in range(len(right)):
        height, width, first = levels[0, k], levels[1, k], levels[2, k]
        x = locations[k, 0] * number(width) - half
        y = locations[k, 1] * number(height) - half
        far = (x < -one) | (y < -one) | (x >= number(width)) | (y >= number(height))
        x, y = zero if far else x, zero if far else y
        right[k], below[k] = x - np.floor(x), y - np.floor(y)
        left, top = np.int32(np.floor(x)), np.int32(np.floor(y))
        last_column, last_line = np.int32(width - next_), np.int32(height - next_)
        column0 = zero if far | (left < none) else one
        column1 = zero if far | (left >= last_column) else one
        line0, line1 = zero if top < none else one, zero if top >= last_line else one
        inside[0, k], inside[1, k] = line0 * column0, line0 * column1
        inside[2, k], inside[3, k] = line1 * column0, line1 * column1
        first0 = np.int32(first + min(max(top, none), last_line) * width)
        first1 = np.int32(first + min(max(np.int32(top + next_), none), last_line) * width)
        near = min(max(left, none), last_column)
        away = min(max(np.int32(left + next_), none), last_column)
        rows[0, k], rows[1, k] = first0 + near, first0 + away
        rows[2, k], rows[3, k] = first1 + near, first1 + away


@_compiled
def _weigh(weights, inside, right, below, shares):  # type: ignore[no-untyped-def]
    """How much of each corner goes into the sum."""
    one = right.dtype.type(1)
    for k in range(len(right)):
        lower = weights[k] * below[k]
        upper = weights[k] - lower
        shares[0, k] = upper * (one - right[k]) * inside[0, k]
        shares[1, k] = upper * right[k] * inside[1, k]
        shares[2, k] = lower * (one - right[k]) * inside[2, k]
        shares[3, k] = lower * right[k] * inside[3, k]


@_compiled
def _sample(value, levels, locations, weights, out, lanes, start, stop):  # type: ignore[no-untyped-def]
    """Write ``out`` for the queries from ``start`` to ``stop``, counted over all images."""
    _, queries, heads, samples, _ = locations.shape
    rows = np.empty((4, samples), np.int32)
    inside, shares = np.empty((2, 4, samples), weights.dtype)
    right, below = np.empty((2, samples), weights.dtype)
    for unit in range(start, stop):
        b, q = unit // queries, unit % queries
        for h in range(heads):
            _corners(levels, locations[b, q, h], rows, inside, right, below)
            _weigh(weights[b, q, h], inside, right, below, shares)
            total = out[b, q, h]
            total[:] = 0
            for k in range(samples):
                value0, value1 = value[b, rows[0, k], h], value[b, rows[1, k], h]
                value2, value3 = value[b, rows[2, k], h], value[b, rows[3, k], h]
                share0, share1 = shares[0, k], shares[1, k]
                share2, share3 = shares[2, k], shares[3, k]
                for d in range(len(lanes)):
                    total[d] += (
                        share0 * value0[d] + share1 * value1[d]
                        + share2 * value2[d] + share3 * value3[d]
                    )  # fmt: skip


@_compiled
def _differentiate(  # type: ignore[no-untyped-def]
    value, levels, locations, weights, grad, grad_value, grad_locations, grad_weights,
    lanes, start, stop,
):  # fmt: skip
    """Write the gradients of the heads from ``start`` to ``stop``, counted over all images;
    ``value`` and its gradient are (B, heads, S, D) here.
    """
    _, queries, heads, samples, _ = locations.shape
    one = weights.dtype.type(1)
    zero = one - one
    rows = np.empty((4, samples), np.int32)
    inside, shares = np.empty((2, 4, samples), weights.dtype)
    right, below = np.empty((2, samples), weights.dtype)
    for unit in range(start, stop):
        b, h = unit // heads, unit % heads
        tokens, grad_tokens = value[b, h], grad_value[b, h]
        for q in range(queries):
            _corners(levels, locations[b, q, h], rows, inside, right, below)
            _weigh(weights[b, q, h], inside, right, below, shares)
            above = grad[b, q, h]
            for k in range(samples):
                value0, value1 = tokens[rows[0, k]], tokens[rows[1, k]]
                value2, value3 = tokens[rows[2, k]], tokens[rows[3, k]]
                match0 = match1 = match2 = match3 = zero
                for d in range(len(lanes)):
                    match0 += above[d] * value0[d]
                    match1 += above[d] * value1[d]
                    match2 += above[d] * value2[d]
                    match3 += above[d] * value3[d]
                match0, match1 = match0 * inside[0, k], match1 * inside[1, k]
                match2, match3 = match2 * inside[2, k], match3 * inside[3, k]
                dx, dy = right[k], below[k]
                upper, lower = match0 + dx * (match1 - match0), match2 + dx * (match3 - match2)
                across = (match1 - match0) * (one - dy) + (match3 - match2) * dy
                weight = weights[b, q, h, k]
                grad_weights[b, q, h, k] = upper + dy * (lower - upper)
                grad_locations[b, q, h, k, 0] = weight * across * levels[1, k]
                grad_locations[b, q, h, k, 1] = weight * (lower - upper) * levels[0, k]
                share0, share1 = shares[0, k], shares[1, k]
                share2, share3 = shares[2, k], shares[3, k]
                below0, below1 = grad_tokens[rows[0, k]], grad_tokens[rows[1, k]]
                below2, below3 = grad_tokens[rows[2, k]], grad_tokens[rows[3, k]]
                for d in range(len(lanes)):
                    below0[d] += share0 * above[d]
                    below1[d] += share1 * above[d]
                for d in range(len(lanes)):
                    below2[d] += share2 * above[d]
                    below3[d] += share3 * above[d]
