"""Logging of the gradient norm and the learning rates."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from codetr.training.log_interval import log_interval, logs_now, on_host
from codetr.training.sharding import full_tensor


class GradientNorm(Callback):
    """Logs ``train/gradient_norm``, the global L2 norm of the gradients before clipping."""

    def __init__(self) -> None:
        self._norm: Tensor | None = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Compute the norm of a step that is logged, without synchronising with the device."""
        if (trainer.global_step + 1) % log_interval(trainer) == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._norm = full_tensor(torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log."""
        if self._norm is not None and logs_now(trainer):
            pl_module.log("train/gradient_norm", self._norm)
            self._norm = None


class LearningRates(Callback):
    """Logs ``lr/<group>`` of every parameter group."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log."""
        if logs_now(trainer):
            for group in trainer.optimizers[0].param_groups:
                pl_module.log(f"lr/{group['name']}", on_host(float(group["lr"])))
