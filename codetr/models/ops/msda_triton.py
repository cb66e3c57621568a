"""Deformable attention as two Triton kernels: one pass forward, one pass backward.

A program takes a block of queries of one head, with all channels of that head, and walks over
levels, points and the four pixels around each point. Nothing but the result is written: no
sample is kept, the backward pass reads the pixels again. How programs are cut is a ``Layout``,
which ``scripts/gpu_check.py tune`` measures. Values may be float32, float16 or
bfloat16; locations, weights and sums are float32 (or all of them float64).

The gradient of the values is summed by atomics, in float32 and in the order of arrival, so its
last bits differ from run to run. Under ``torch.use_deterministic_algorithms(True)`` it is summed
in 64-bit integers instead, where the order does not matter. Their unit is at most
queries * points * max|gradient| * max|weight| / 2^60, for 22,000 queries a 2^-43 of the largest
single contribution; it costs twice the traffic.

Triton's interpreter (``TRITON_INTERPRET=1``) runs the same code on CPU tensors.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton's kernels take pointers and block values, for which there are no Python types.

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from codetr.models.ops.msda_reference import Shapes

FIXED_POINT_BITS = 61  # of the largest sum that is possible, below sign and one spare bit
SIZES = ["rows", "queries", "tokens"]  # not compiled in: they change with every batch


@dataclass(frozen=True)
class Layout:
    """How a pass is cut into programs, and how values lie in memory; results do not depend on it.

    ``elements``: queries x channels of a program, a power of two; ``warps`` of 32 threads that
    share them; ``heads_innermost``: neighbouring programs take the heads of the same queries,
    otherwise other queries of the same head; ``head_major``: values are (B, heads, S, D) while
    the kernel runs, for which they are copied.
    """

    elements: int
    warps: int
    heads_innermost: bool = True
    head_major: bool = False


FORWARD = Layout(elements=1024, warps=4)
BACKWARD = Layout(elements=256, warps=1)  # one warp exchanges its numbers without a barrier


@triton.jit
def _level(levels, level):
    """Height, width and first token of a level."""
    return (
        tl.load(levels + 3 * level),
        tl.load(levels + 3 * level + 1),
        tl.load(levels + 3 * level + 2),
    )


@triton.jit
def _point(locations, sample, is_row, height, width):
    """The pixel left of and above each point, and how far the point is from it (0 to 1)."""
    x = tl.load(locations + 2 * sample, mask=is_row, other=-1.0) * width - 0.5
    y = tl.load(locations + 2 * sample + 1, mask=is_row, other=-1.0) * height - 0.5
    # a point that touches no pixel may be too far out, or not a number, to become an integer
    touches = (x >= -1) & (x < width) & (y >= -1) & (y < height)
    near_x, near_y = tl.where(touches, x, -2.0), tl.where(touches, y, -2.0)
    left, top = tl.floor(near_x), tl.floor(near_y)
    # x - x is 0, but stays not a number, for the sum to show it
    return left.to(tl.int32), top.to(tl.int32), near_x - left + (x - x), near_y - top + (y - y)


@triton.jit
def _program(
    rows, queries, tokens, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    HEADS_INNERMOST: tl.constexpr, HEAD_MAJOR: tl.constexpr,
):  # fmt: skip
    """What a program works on: which rows exist; of each the number among all rows and heads, and
    the first element of its image and head in the values.
    """
    number = tl.program_id(0)
    if HEADS_INNERMOST:
        block, head = number // HEADS, number % HEADS
    else:
        blocks = tl.num_programs(0) // HEADS
        block, head = number % blocks, number // blocks
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    image = (row // queries).to(tl.int64) * tokens * (HEADS * DIM)
    origin = image + head * (tokens.to(tl.int64) * DIM if HEAD_MAJOR else DIM)
    return row < rows, row.to(tl.int64) * HEADS + head, origin


@triton.jit
def _corner(
    right: tl.constexpr, below: tl.constexpr, left, top, height, width, first, origin, channel,
    DIM: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One of the four pixels around each point: its elements in the values, and which exist;
    ``STEP`` elements are from one pixel to the next.
    """
    column, line = left + right, top + below
    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    where = (origin + (first + line * width + column) * STEP)[:, None] + channel
    return where, inside[:, None] & (channel < DIM)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    value, levels, locations, weights, out, rows, queries, tokens,
    HEADS: tl.constexpr, DIM: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    HEADS_INNERMOST: tl.constexpr, HEAD_MAJOR: tl.constexpr,
):  # fmt: skip
    """``rows`` are images times queries; ``levels`` holds (H, W, first token) of each level."""
    precision = locations.dtype.element_ty
    STEP: tl.constexpr = DIM if HEAD_MAJOR else HEADS * DIM
    is_row, item, origin = _program(
        rows, queries, tokens, HEADS, DIM, BLOCK_ROWS, HEADS_INNERMOST, HEAD_MAJOR
    )
    channel = tl.arange(0, BLOCK_DIM)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_DIM), precision)
    for level in range(LEVELS):
        height, width, first = _level(levels, level)
        for point in tl.static_range(POINTS):
            sample = (item * LEVELS + level) * POINTS + point
            weight = tl.load(weights + sample, mask=is_row, other=0.0)
            left, top, dx, dy = _point(locations, sample, is_row, height, width)
            for corner in tl.static_range(4):
                where, mask = _corner(
                    corner % 2, corner // 2,
                    left, top, height, width, first, origin, channel, DIM, STEP,
                )  # fmt: skip
                pixel = tl.load(value + where, mask=mask, other=0.0)
                share = (dx if corner % 2 else 1 - dx) * (dy if corner // 2 else 1 - dy)
                total += (weight * share)[:, None] * pixel.to(precision)
    where = (item * DIM)[:, None] + channel
    tl.store(out + where, total.to(out.dtype.element_ty), mask=is_row[:, None] & (channel < DIM))


@triton.jit
def _match(value, where, mask, grad):
    """Sum over channels of pixels times gradient."""
    pixel = tl.load(value + where, mask=mask, other=0.0)
    return tl.sum(pixel.to(grad.dtype) * grad, axis=1)


@triton.jit
def _add(grad_value, where, mask, share, grad, unit):
    """Add a share of the gradient to that of pixels; in units if the sums are integers."""
    part = share[:, None] * grad
    if grad_value.dtype.element_ty == tl.int64:
        part = tl.floor(part / tl.load(unit) + 0.5).to(tl.int64)
    tl.atomic_add(grad_value + where, part, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=SIZES)
def _backward(
    grad_out, value, levels, locations, weights, unit, grad_value, grad_locations, grad_weights,
    rows, queries, tokens,
    HEADS: tl.constexpr, DIM: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    HEADS_INNERMOST: tl.constexpr, HEAD_MAJOR: tl.constexpr,
):  # fmt: skip
    """As ``_forward``. If ``grad_value`` is integer, it counts units of size ``unit``."""
    precision = locations.dtype.element_ty
    STEP: tl.constexpr = DIM if HEAD_MAJOR else HEADS * DIM
    is_row, item, origin = _program(
        rows, queries, tokens, HEADS, DIM, BLOCK_ROWS, HEADS_INNERMOST, HEAD_MAJOR
    )
    channel = tl.arange(0, BLOCK_DIM)[None, :]
    where = (item * DIM)[:, None] + channel
    mask = is_row[:, None] & (channel < DIM)
    grad = tl.load(grad_out + where, mask=mask, other=0.0).to(precision)
    for level in range(LEVELS):
        height, width, first = _level(levels, level)
        for point in range(POINTS):
            sample = (item * LEVELS + level) * POINTS + point
            weight = tl.load(weights + sample, mask=is_row, other=0.0)
            left, top, dx, dy = _point(locations, sample, is_row, height, width)
            at00, is00 = _corner(0, 0, left, top, height, width, first, origin, channel, DIM, STEP)
            at10, is10 = _corner(1, 0, left, top, height, width, first, origin, channel, DIM, STEP)
            at01, is01 = _corner(0, 1, left, top, height, width, first, origin, channel, DIM, STEP)
            at11, is11 = _corner(1, 1, left, top, height, width, first, origin, channel, DIM, STEP)
            # every pixel is read before the first sum: no load is moved ahead of an atomic
            match00 = _match(value, at00, is00, grad)
            match10 = _match(value, at10, is10, grad)
            match01 = _match(value, at01, is01, grad)
            match11 = _match(value, at11, is11, grad)
            _add(grad_value, at00, is00, weight * (1 - dx) * (1 - dy), grad, unit)
            _add(grad_value, at10, is10, weight * dx * (1 - dy), grad, unit)
            _add(grad_value, at01, is01, weight * (1 - dx) * dy, grad, unit)
            _add(grad_value, at11, is11, weight * dx * dy, grad, unit)
            upper = (1 - dx) * match00 + dx * match10
            lower = (1 - dx) * match01 + dx * match11
            grad_x = (1 - dy) * (match10 - match00) + dy * (match11 - match01)
            grad_y = lower - upper
            tl.store(grad_weights + sample, (1 - dy) * upper + dy * lower, mask=is_row)
            tl.store(grad_locations + 2 * sample, weight * grad_x * width, mask=is_row)
            tl.store(grad_locations + 2 * sample + 1, weight * grad_y * height, mask=is_row)


def forward(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, layout: Layout = FORWARD
) -> Tensor:
    """(B, Q, heads * D); arguments as of ``codetr.models.ops.multi_scale_deformable_attention``."""
    batch, queries, heads = locations.shape[:3]
    out = value.new_empty(batch, queries, heads * value.shape[3])
    levels = _level_table(shapes, value.device)
    pixels = value.transpose(1, 2) if layout.head_major else value
    _launch(_forward, layout, value, locations, (pixels, levels, locations, weights, out))
    return out


def backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    layout: Layout = BACKWARD,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, locations and weights for that of ``forward``'s result."""
    deterministic = torch.are_deterministic_algorithms_enabled() and grad_out.numel() > 0
    precision = locations.dtype
    unit = _fixed_point_unit(grad_out, weights) if deterministic else weights.new_ones(())
    sums = torch.int64 if deterministic else precision
    pixels = value.transpose(1, 2) if layout.head_major else value
    grad_value = torch.zeros(pixels.shape, dtype=sums, device=value.device)
    grad_locations = locations.new_empty(locations.shape)
    grad_weights = weights.new_empty(weights.shape)
    levels = _level_table(shapes, value.device)
    inputs = (grad_out, pixels, levels, locations, weights, unit)
    outputs = (grad_value, grad_locations, grad_weights)
    _launch(_backward, layout, value, locations, (*inputs, *outputs))
    if deterministic:
        grad_value = grad_value.to(precision) * unit
    if layout.head_major:
        grad_value = grad_value.transpose(1, 2).contiguous()
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _launch(
    kernel: triton.JITFunction,
    layout: Layout,
    value: Tensor,
    locations: Tensor,
    tensors: tuple[Tensor, ...],
) -> None:
    batch, queries, heads, levels, points, _ = locations.shape
    dim = value.shape[3]
    rows = batch * queries
    block_dim = triton.next_power_of_2(dim)
    block_rows = max(1, layout.elements // block_dim)
    if rows == 0:
        return
    with torch.cuda.device_of(value):  # Triton launches on the current device
        kernel[(triton.cdiv(rows, block_rows) * heads,)](
            *(tensor.contiguous() for tensor in tensors),
            rows, queries, value.shape[1],
            HEADS=heads, DIM=dim, LEVELS=levels, POINTS=points,
            BLOCK_ROWS=block_rows, BLOCK_DIM=block_dim,
            HEADS_INNERMOST=layout.heads_innermost, HEAD_MAJOR=layout.head_major,
            num_warps=layout.warps, enable_fp_fusion=True,
        )  # fmt: skip


def run_smallest(device: torch.device) -> None:
    """Compile and run both passes on a single pixel; raises what stands in the way."""
    value = torch.zeros(1, 1, 1, 16, device=device)
    locations = torch.zeros(1, 1, 1, 1, 1, 2, device=device)
    weights = torch.zeros(1, 1, 1, 1, 1, device=device)
    out = forward(value, ((1, 1),), locations, weights)
    backward(out, value, ((1, 1),), locations, weights)[0].cpu()  # waits: errors arrive late


@functools.lru_cache(maxsize=1024)
def _level_table(shapes: Shapes, device: torch.device) -> Tensor:
    """(L, 3) int32 (H, W, first token), kept on the device: all layers, and both passes, read the
    same. From pinned memory, so that the host does not wait.
    """
    ends = itertools.accumulate(h * w for h, w in shapes)
    rows = [(h, w, end - h * w) for (h, w), end in zip(shapes, ends, strict=True)]
    table = torch.tensor(rows, dtype=torch.int32)
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


def _fixed_point_unit(grad_out: Tensor, weights: Tensor) -> Tensor:
    """The power of two in which no sum over queries and points can overflow 64 bits.

    It is not a number where the gradient is not finite, and then so are all the sums.
    """
    samples = weights.shape[1] * weights.shape[4]
    largest = grad_out.abs().amax().double() * weights.abs().amax().double() * samples
    exponent = largest.clamp_min(2.0**-60).log2().ceil() - FIXED_POINT_BITS
    return exponent.exp2().to(weights.dtype)
