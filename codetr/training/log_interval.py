"""When to log: the interval that losses and callbacks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

FIRST_RANK_ONLY: Mapping[str, Any] = {"rank_zero_only": True, "sync_dist": True}
"""Arguments of ``log`` for the first process's value at the end of an epoch. Nothing is reduced;
``sync_dist`` only avoids Lightning's warning about it.
"""


def log_interval(trainer: Trainer) -> int:
    """Optimiser steps between two log entries."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined,no-any-return]


def logs_now(trainer: Trainer) -> bool:
    """In ``on_train_batch_end``: whether Lightning passes values to the loggers after this batch,
    as it does every ``log_every_n_steps`` optimiser steps.
    """
    stepped = (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
    last = trainer.is_last_batch  # remaining batches make a step too
    return (stepped or last) and trainer.global_step % log_interval(trainer) == 0


def on_host(value: float) -> Tensor:
    """A number to log as a CPU tensor: Lightning would copy a float to the device and back, which
    synchronises.
    """
    return torch.tensor(value, device="cpu")
