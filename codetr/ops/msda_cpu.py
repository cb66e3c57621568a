"""Deformable attention on the CPU, compiled when it first runs: no compiler is needed, numba
brings its own.

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

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codetr.ops.msda_reference import Shapes

UNROLLED = (16, 32, 64)
"""Head widths that are compiled as constants; any other is compiled once, and 2 times slower."""

WORTH_A_THREAD = 2**21
"""Products below which handing work to one more thread costs more than it brings."""

Array = NDArray[Any]


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """(B, Q, heads * D); arguments as of ``codetr.ops.multi_scale_deformable_attention``."""
    given = _Arguments(value, shapes, locations, weights)
    batch, queries, heads = locations.shape[:3]
    out = np.empty((batch, queries, heads, value.shape[3]), given.value.dtype)
    _share_out(lambda i, n: _sample(*given.all, out, given.lanes, i, n), batch * queries, given)
    return torch.from_numpy(out).flatten(2).to(value.dtype)


def backward(
    grad_out: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights for that of ``forward``'s result."""
    given = _Arguments(value, shapes, locations, weights)
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
    return grad_value.to(value.dtype), grad_locations, grad_weights.to(weights.dtype)


class _Arguments:
    """What both passes read, as contiguous arrays of one dtype."""

    def __init__(self, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
        self.value = _array(value, locations.dtype)
        self.locations = _array(locations, locations.dtype)
        self.weights = _array(weights, locations.dtype)
        self.shapes = np.array(shapes, np.int64)
        width = value.shape[3]
        # the length of a tuple is a constant to the compiler, that of an array is not
        self.lanes = (0,) * width if width in UNROLLED else np.zeros(width, np.int64)
        self.products = weights.numel() * width

    @property
    def all(self) -> tuple[Array, Array, Array, Array]:
        return self.value, self.shapes, self.locations, self.weights


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


if hasattr(os, "register_at_fork"):  # where there is fork, which takes no threads along
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Sums may be reordered, so that they can use vectors; what is not a number stays so."""
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "nsz"},
    }
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep the result in: compiled anew in every process
        return numba.njit(**options)(function)


@_compiled
def _corners(x, y, height, width, one):  # type: ignore[no-untyped-def]
    """The four pixels around (x, y) as rows of the level, whether each lies on the map (1 or 0),
    and how far (x, y) lies right of and below the first. Rows are valid in any case.
    """
    zero = one - one
    dx, dy = x - np.floor(x), y - np.floor(y)
    left, top = int(np.floor(x)), int(np.floor(y))
    columns = one if 0 <= left < width else zero, one if -1 <= left < width - 1 else zero
    lines = one if 0 <= top < height else zero, one if -1 <= top < height - 1 else zero
    first, second = min(max(left, 0), width - 1), min(max(left + 1, 0), width - 1)
    upper, lower = min(max(top, 0), height - 1) * width, min(max(top + 1, 0), height - 1) * width
    rows = upper + first, upper + second, lower + first, lower + second
    inside = (
        lines[0] * columns[0], lines[0] * columns[1],
        lines[1] * columns[0], lines[1] * columns[1],
    )  # fmt: skip
    return rows, inside, dx, dy


@_compiled
def _shares(weight, dx, dy, inside, one):  # type: ignore[no-untyped-def]
    """How much of each corner goes into the sum."""
    below = weight * dy
    above = weight - below
    return (
        above * (one - dx) * inside[0], above * dx * inside[1],
        below * (one - dx) * inside[2], below * dx * inside[3],
    )  # fmt: skip


@_compiled
def _sample(value, shapes, locations, weights, out, lanes, start, stop):  # type: ignore[no-untyped-def]
    """Write ``out`` for the queries from ``start`` to ``stop``, counted over all images."""
    _, queries, heads, levels, points, _ = locations.shape
    one = weights.dtype.type(1)
    for unit in range(start, stop):
        b, q = unit // queries, unit % queries
        for h in range(heads):
            total = out[b, q, h]
            total[:] = 0
            offset = 0
            for level in range(levels):
                height, width = shapes[level]
                for p in range(points):
                    at = locations[b, q, h, level, p]
                    x = at[0] * weights.dtype.type(width) - one / 2
                    y = at[1] * weights.dtype.type(height) - one / 2
                    if x < -1 or y < -1 or x >= width or y >= height:
                        continue
                    rows, inside, dx, dy = _corners(x, y, height, width, one)
                    weight = weights[b, q, h, level, p]
                    share0, share1, share2, share3 = _shares(weight, dx, dy, inside, one)
                    value0 = value[b, offset + rows[0], h]
                    value1 = value[b, offset + rows[1], h]
                    value2 = value[b, offset + rows[2], h]
                    value3 = value[b, offset + rows[3], h]
                    for d in range(len(lanes)):
                        total[d] += (
                            share0 * value0[d] + share1 * value1[d]
                            + share2 * value2[d] + share3 * value3[d]
                        )  # fmt: skip
                offset += height * width


@_compiled
def _differentiate(  # type: ignore[no-untyped-def]
    value, shapes, locations, weights, grad, grad_value, grad_locations, grad_weights,
    lanes, start, stop,
):  # fmt: skip
    """Write the gradients of the heads from ``start`` to ``stop``, counted over all images."""
    _, queries, heads, levels, points, _ = locations.shape
    one = weights.dtype.type(1)
    zero = one - one
    for unit in range(start, stop):
        b, h = unit // heads, unit % heads
        for q in range(queries):
            above = grad[b, q, h]
            offset = 0
            for level in range(levels):
                height, width = shapes[level]
                for p in range(points):
                    at = locations[b, q, h, level, p]
                    x = at[0] * weights.dtype.type(width) - one / 2
                    y = at[1] * weights.dtype.type(height) - one / 2
                    grad_at = grad_locations[b, q, h, level, p]
                    if x < -1 or y < -1 or x >= width or y >= height:
                        grad_at[0] = grad_at[1] = grad_weights[b, q, h, level, p] = zero
                        continue
                    rows, inside, dx, dy = _corners(x, y, height, width, one)
                    row0, row1 = offset + rows[0], offset + rows[1]
                    row2, row3 = offset + rows[2], offset + rows[3]
                    value0, value1 = value[b, row0, h], value[b, row1, h]
                    value2, value3 = value[b, row2, h], value[b, row3, h]
                    match0 = match1 = match2 = match3 = zero
                    for d in range(len(lanes)):
                        match0 += above[d] * value0[d]
                        match1 += above[d] * value1[d]
                        match2 += above[d] * value2[d]
                        match3 += above[d] * value3[d]
                    match0, match1 = match0 * inside[0], match1 * inside[1]
                    match2, match3 = match2 * inside[2], match3 * inside[3]
                    upper, lower = match0 + dx * (match1 - match0), match2 + dx * (match3 - match2)
                    across = (match1 - match0) * (one - dy) + (match3 - match2) * dy
                    weight = weights[b, q, h, level, p]
                    grad_weights[b, q, h, level, p] = upper + dy * (lower - upper)
                    grad_at[0] = weight * across * weights.dtype.type(width)
                    grad_at[1] = weight * (lower - upper) * weights.dtype.type(height)
                    share0, share1, share2, share3 = _shares(weight, dx, dy, inside, one)
                    below0, below1 = grad_value[b, row0, h], grad_value[b, row1, h]
                    below2, below3 = grad_value[b, row2, h], grad_value[b, row3, h]
                    for d in range(len(lanes)):
                        below0[d] += share0 * above[d]
                        below1[d] += share1 * above[d]
                    for d in range(len(lanes)):
                        below2[d] += share2 * above[d]
                        below3[d] += share3 * above[d]
                offset += height * width
