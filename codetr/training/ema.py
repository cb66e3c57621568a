"""Moving average of the weights, used for validation and kept in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from codetr.training.sharding import ShardedStrategy, local, whole

Warmup = Callable[[float, int], float]
"""From the final decay and the number of steps taken before to the decay of a step."""


def hyperbolic(decay: float, steps: int) -> float:
    """``min(decay, (1 + n) / (10 + n))``: an average over the latter part of a short run."""
    return min(decay, (1 + steps) / (10 + steps))


def exponential(decay: float, steps: int, length: int = 2000) -> float:
    """``decay * (1 - exp(-(1 + n) / length))``: mmdet's ``ExpMomentumEMAHook``, which states it
    for the momentum 1 - d.
    """
    return decay * -math.expm1(-(1 + steps) / length)


class Average(AveragedModel):
    """A copy of ``model`` on ``device`` whose parameters follow those of the model, by one
    operation and without waiting for the device: steps are counted on the host.

    Buffers are not averaged; ``copy_buffers`` takes them over.
    """

    n_averaged: Tensor

    def __init__(
        self, model: nn.Module, device: torch.device, decay: float, warmup: Warmup | None
    ) -> None:
        super().__init__(model)  # which would put the counter there, too
        self.module.to(device)
        self._decay, self._warmup = decay, warmup

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """``average += (1 - d) * (weight - average)``; the first call copies the weights."""
        averages, weights = local(self.module), local(model)
        steps = int(self.n_averaged)
        if steps == 0:
            torch._foreach_copy_(averages, weights)
        else:
            keep = self._decay if self._warmup is None else self._warmup(self._decay, steps)
            torch._foreach_lerp_(averages, weights, 1 - keep)
        self.n_averaged += 1

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Take over the buffers of ``model``."""
        for own, other in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(other, non_blocking=True)


class ExponentialMovingAverage(WeightAveraging):
    """``average += (1 - d) * (weight - average)`` after every optimiser step but the first, whose
    weights it starts from.

    ``d = warmup(decay, n)`` after ``n`` steps, so that short runs forget their initial weights;
    ``d = decay`` where ``warmup`` is None. Buffers are those of the model. Checkpoints hold the
    average as ``state_dict`` and the weights that are trained as ``current_model_state``.
    """

    _average_model: Average | None

    def __init__(self, decay: float = 0.9997, warmup: Warmup | None = hyperbolic) -> None:
        super().__init__(use_buffers=False)
        self.decay, self.warmup = decay, warmup
        self._averaged_is_live = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build the average on the device where the model is going to be, not where it is now."""
        if stage == "fit":
            device = trainer.strategy.root_device
            self._average_model = Average(pl_module, device, self.decay, self.warmup)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Divide the average where the model is divided, now that a checkpoint is loaded."""
        if isinstance(trainer.strategy, ShardedStrategy) and self._average_model is not None:
            trainer.strategy.divide(self._average_model.module)  # type: ignore[arg-type]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average with the buffers that go with it; also within a validation, when the
        model has its weights.
        """
        if self._average_model is not None:
            self._average_model.copy_buffers(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["state_dict"] = whole(checkpoint["state_dict"])
        if self._averaged_is_live:
            average, trained = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint.update(state_dict=average, current_model_state=trained)

    @torch.no_grad()
    def _swap_models(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        averages, weights = local(self._average_model.module), local(pl_module)
        for average, weight in zip(averages, weights, strict=True):
            before = average.clone()
            average.copy_(weight)
            weight.copy_(before)
        self._averaged_is_live = not self._averaged_is_live

    @torch.no_grad()
    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        averages, weights = local(self._average_model.module), local(pl_module)
        torch._foreach_copy_(weights, averages)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """A run that is stopped within a validation must not save the average as its weights."""
        if self._averaged_is_live:
            self._swap_models(pl_module)
