"""Exponential moving average of the weights, used for validation and saved in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from codetr.training.sharding import ShardedStrategy, full_state, local_shards

Warmup = Callable[[float, int], float]
"""Function of the final decay and the number of previous steps that returns the decay of a step."""


def hyperbolic(decay: float, steps: int) -> float:
    """``min(decay, (1 + n) / (10 + n))``: an average over the latter part of a short run."""
    return min(decay, (1 + steps) / (10 + steps))


def exponential(decay: float, steps: int, length: int = 2000) -> float:
    """``decay * (1 - exp(-(1 + n) / length))``, as in mmdet's ``ExpMomentumEMAHook``, whose
    momentum is 1 - d.
    """
    return decay * -math.expm1(-(1 + steps) / length)


class Average(AveragedModel):
    """A moving average of ``model`` on ``device``, updated by one fused operation without
    synchronisation: steps are counted on the CPU. Buffers are not averaged, see ``copy_buffers``.
    """

    n_averaged: Tensor

    def __init__(
        self, model: nn.Module, device: torch.device, decay: float, warmup: Warmup | None
    ) -> None:
        super().__init__(model)  # no device here: the counter would move there too
        self.module.to(device)
        self._decay, self._warmup = decay, warmup

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """``average += (1 - d) * (weight - average)``; the first call copies the weights."""
        averages, weights = local_shards(self.module), local_shards(model)
        steps = int(self.n_averaged)
        if steps == 0:
            torch._foreach_copy_(averages, weights)
        else:
            keep = self._decay if self._warmup is None else self._warmup(self._decay, steps)
            torch._foreach_lerp_(averages, weights, 1 - keep)
        self.n_averaged += 1

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of ``model``."""
        for own, other in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(other, non_blocking=True)


class ExponentialMovingAverage(WeightAveraging):
    """``average += (1 - d) * (weight - average)`` after each optimiser step; the first step copies
    the weights.

    ``d = warmup(decay, n)`` after ``n`` steps, so that short runs forget their initial weights;
    ``d = decay`` if ``warmup`` is None. Buffers are the model's. Checkpoints hold the average as
    ``state_dict`` and the trained weights as ``current_model_state``.
    """

    _average_model: Average | None

    def __init__(self, decay: float = 0.9997, warmup: Warmup | None = hyperbolic) -> None:
        super().__init__(use_buffers=False)
        self.decay, self.warmup = decay, warmup
        self._averaged_is_live = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build the average on the device that the model will be moved to."""
        if stage == "fit":
            device = trainer.strategy.root_device
            self._average_model = Average(pl_module, device, self.decay, self.warmup)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shard the average if the model is sharded; a checkpoint is loaded by now."""
        if isinstance(trainer.strategy, ShardedStrategy) and self._average_model is not None:
            trainer.strategy.shard(self._average_model.module)  # type: ignore[arg-type]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average with the model's buffers; also within a validation, when the model holds
        the average.
        """
        if self._average_model is not None:
            self._average_model.copy_buffers(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["state_dict"] = full_state(checkpoint["state_dict"])
        if self._averaged_is_live:
            average, trained = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint.update(state_dict=average, current_model_state=trained)

    @torch.no_grad()
    def _swap_models(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        averages, weights = local_shards(self._average_model.module), local_shards(pl_module)
        for average, weight in zip(averages, weights, strict=True):
            before = average.clone()
            average.copy_(weight)
            weight.copy_(before)
        self._averaged_is_live = not self._averaged_is_live

    @torch.no_grad()
    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        averages, weights = local_shards(self._average_model.module), local_shards(pl_module)
        torch._foreach_copy_(weights, averages)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Swap back the trained weights of a run that ends within a validation."""
        if self._averaged_is_live:
            self._swap_models(pl_module)
