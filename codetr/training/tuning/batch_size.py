"""Search for the largest batch that fits into memory.

Lightning's ``Tuner.scale_batch_size`` returns its upper bound without having tried it, and tries
empty batches if a single image does not fit. This search returns only sizes that were tried.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from codetr.errors import UserError


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number from 1 to ``limit`` that ``fits``, 0 if none does: by doubling, then by
    bisection. Each number is tried at most once.
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
    """The largest batch to try: ``largest_batch``, but at most ``images``.

    Raises UserError on a CPU without ``largest_batch``: where a GPU raises an error, the operating
    system kills a process that uses too much memory.
    """
    if largest_batch is None and device.type == "cpu":
        raise UserError(
            "tune=batch_size on a CPU: a process that runs out of memory is killed: give "
            "finder.largest_batch=N, the largest size to try, or use a GPU"
        )
    return images if largest_batch is None else min(largest_batch, images)


def dividing(size: int, effective_batch: int | None) -> int:
    """The largest batch of at most ``size`` images that divides ``effective_batch``."""
    if effective_batch is None:
        return size
    return next(n for n in range(min(size, effective_batch), 0, -1) if effective_batch % n == 0)


def batch_text(size: int, limit: int, effective_batch: int | None) -> str:
    """The advice to print where ``size`` images fit and at most ``limit`` were tried."""
    chosen = dividing(size, effective_batch)
    bound = "no more were tried" if size == limit else f"{size + 1} do not"
    text = f"data.batch_size={chosen}: batches of {size} images fit into memory ({bound})"
    if effective_batch is None:
        return (
            f"{text}; with it, give trainer.effective_batch=N, the images per step that the "
            "learning rate is meant for, or find a learning rate with tune=lr"
        )
    count = effective_batch // chosen
    batches = "1 batch" if count == 1 else f"{count} batches"
    return f"{text}; {batches} of {chosen} make trainer.effective_batch={effective_batch}"
