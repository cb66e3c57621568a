"""The largest batch that fits into memory.

Lightning's ``Tuner.scale_batch_size`` gives its upper bound as an answer without having tried it,
and goes down to batches of no image where not even one fits; this search has tried what it says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from codetr.errors import UserError


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 1 to ``limit`` that ``fits``, 0 if none does: by doubling, then by
    bisection. No number is asked for twice.
    """
    low, size = 0, 1
    while size <= limit and fits(size):
        low, size = size, 2 * size
    high = min(size, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def batch_limit(largest_batch: int | None, images: int, device: torch.device) -> int:
    """The largest batch to try: ``largest_batch``, and no more than there are ``images``.

    Raises UserError without a bound on a CPU: the system ends a process there that takes too much
    memory, where a GPU refuses it.
    """
    if largest_batch is None and device.type == "cpu":
        raise UserError(
            "tune=batch_size on a CPU: nothing tells a process that its memory is full: give "
            "finder.largest_batch=N, up to which sizes are tried, or use a GPU"
        )
    return images if largest_batch is None else min(largest_batch, images)


def dividing(size: int, effective_batch: int | None) -> int:
    """The largest batch of at most ``size`` that accumulates to ``effective_batch`` images."""
    if effective_batch is None:
        return size
    return next(n for n in range(min(size, effective_batch), 0, -1) if effective_batch % n == 0)


def batch_text(size: int, limit: int, effective_batch: int | None) -> str:
    """What to do with it where ``size`` images fit and no more than ``limit`` were tried."""
    chosen = dividing(size, effective_batch)
    bound = "no more were tried" if size == limit else f"{size + 1} do not"
    text = f"data.batch_size={chosen}: batches of {size} images fit into memory ({bound})"
    if effective_batch is None:
        return (
            f"{text}; give trainer.effective_batch=N with it, the images per step that the "
            "learning rate is meant for, or find the rate with tune=lr"
        )
    count = effective_batch // chosen
    batches = "1 batch" if count == 1 else f"{count} batches"
    return f"{text}; {batches} of {chosen} make trainer.effective_batch={effective_batch}"
