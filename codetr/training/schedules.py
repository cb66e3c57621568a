"""Learning-rate schedules: factors on the rate of each group as functions of the optimiser step.

Lengths are given in epochs, so that a schedule is independent of the batch size, and converted with
``steps_per_epoch``, the number of optimiser steps per epoch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from codetr.errors import UserError


def warm_up(step: int, steps: int, start: float) -> float:
    """Factor that rises linearly from ``start`` at step 0 to 1 at ``steps`` and stays there."""
    return 1.0 if step >= steps else start + (1 - start) * step / steps


def step_schedule(
    optimizer: Optimizer,
    steps_per_epoch: int,
    *,
    epochs: int,
    milestones: Sequence[float],
    gamma: float = 0.1,
    warmup_steps: int = 0,
    warmup_start: float = 0.01,
) -> LambdaLR:
    """Multiplies the rate by ``gamma`` at each of ``milestones`` (in epochs), with linear warm-up.

    The default ``warmup_start`` is that of the official ViT recipe (500 steps from 0.01).
    Raises UserError for milestones that are not ascending or not within ``epochs``.
    """
    if any(not 0 < m <= epochs for m in milestones) or list(milestones) != sorted(milestones):
        raise UserError(
            f"schedule.milestones={list(milestones)} with schedule.epochs={epochs}: give "
            "ascending epochs within the schedule"
        )
    drops = [round(m * steps_per_epoch) for m in milestones]

    def factor(step: int) -> float:
        return warm_up(step, warmup_steps, warmup_start) * gamma ** bisect_right(drops, step)

    return LambdaLR(optimizer, factor)


def cosine_schedule(
    optimizer: Optimizer,
    steps_per_epoch: int,
    *,
    epochs: int,
    flat: float = 0.0,
    final: float = 0.0,
    warmup_steps: int = 0,
    warmup_start: float = 0.01,
    by_epoch: bool = False,
    lag: float = 0.0,
) -> LambdaLR:
    """Warm-up, then constant up to the share ``flat`` of all steps, then a half cosine down to
    ``final``: Loshchilov and Hutter 2017, equation 5, without restarts.

    ``by_epoch``: the cosine is constant within an epoch, at its value of the first step. ``lag``:
    delay of the cosine in epochs (its end is cut off).
    """
    total = epochs * steps_per_epoch
    start = max(warmup_steps, round(flat * total))
    late = round(lag * steps_per_epoch)

    def factor(step: int) -> float:
        place = step - step % steps_per_epoch if by_epoch else step
        progress = min(max(place - late - start, 0) / max(total - start, 1), 1.0)
        decay = final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
        return warm_up(step, warmup_steps, warmup_start) * decay

    return LambdaLR(optimizer, factor)
