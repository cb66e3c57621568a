"""When to log: the interval that losses and callbacks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

OF_FIRST_RANK: Mapping[str, Any] = {"rank_zero_only": True, "sync_dist": True}
"""To log a value at the end of an epoch as the first process has it. Nothing is reduced so, but
Lightning would advise it for every name with ``rank_zero_only`` alone.
"""


def log_interval(trainer: Trainer) -> int:
    """Optimiser steps from one log entry to the next."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined,no-any-return]


def logs_now(trainer: Trainer) -> bool:
    """In ``on_train_batch_end``: whether Lightning hands step values to the loggers after this
    batch, which is so every ``log_every_n_steps`` optimiser steps.
    """
    stepped = (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
    last = trainer.is_last_batch  # the rest of an epoch is a step of its own
    return (stepped or last) and trainer.global_step % log_interval(trainer) == 0


def on_host(value: float) -> Tensor:
    """A number to be logged, on the CPU: Lightning would copy it to the device, which is waited
    for, and back again.
    """
    return torch.tensor(value, device="cpu")
