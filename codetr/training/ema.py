"""Moving average of the weights, used for validation and kept in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

Warmup = Callable[[float, Tensor], Tensor]
"""From the final decay and the number of steps taken before (scalar) to the decay of a step."""


def hyperbolic(decay: float, steps: Tensor) -> Tensor:
    """``min(decay, (1 + n) / (10 + n))``: an average over the latter part of a short run."""
    return ((1 + steps) / (10 + steps)).clamp(max=decay)


def exponential(decay: float, steps: Tensor, length: int = 2000) -> Tensor:
    """``decay * (1 - exp(-(1 + n) / length))``: mmdet's ``ExpMomentumEMAHook``, which states it
    for the momentum 1 - d.
    """
    return decay * (1 - torch.exp(-(1 + steps) / length))


class ExponentialMovingAverage(WeightAveraging):
    """``average += (1 - d) * (weight - average)`` after every optimiser step but the first, whose
    weights it starts from.

    ``d = warmup(decay, n)`` after ``n`` steps, so that short runs forget their initial weights;
    ``d = decay`` where ``warmup`` is None. Checkpoints hold the average as ``state_dict`` and the
    weights that are trained as ``current_model_state``.
    """

    def __init__(self, decay: float = 0.9997, warmup: Warmup | None = hyperbolic) -> None:
        def average(averages: Sequence[Tensor], weights: Sequence[Tensor], steps: Tensor) -> None:
            if warmup is None:
                keep = torch.full_like(steps, decay, dtype=torch.float32)
            else:
                keep = warmup(decay, steps)
            change = torch._foreach_sub(list(weights), list(averages))
            torch._foreach_mul_(change, 1 - keep)
            torch._foreach_add_(list(averages), change)

        super().__init__(use_buffers=False, multi_avg_fn=average)
        self._averaged_is_live = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Build the average, with its step counter on the CPU: reading it must not wait."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._averaged_is_live = not self._averaged_is_live

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """A run that is stopped within a validation must not save the average as its weights."""
        if self._averaged_is_live:
            self._swap_models(pl_module)
