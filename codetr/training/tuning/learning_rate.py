"""The learning-rate range test (Smith 2017, "Cyclical learning rates", section 3.3).

The learning rate grows exponentially; the suggested rate is where the loss falls most steeply.
Lightning's ``Tuner.lr_find`` gives all parameter groups the same rate, which is not the optimiser
of training. Here the growth is a schedule, a factor on the rate of each group: the groups keep
their ratios, and clipping and accumulation are those of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from scipy.signal import savgol_filter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from codetr.errors import UserError

MIN_STEPS = 10
"""Steps before divergence that a suggestion needs."""
MIN_SIGNAL = 8.0
"""Standard errors by which the loss must fall. Noise alone exceeds this in one of a hundred tests
of up to 100 steps.
"""


@dataclass(frozen=True, kw_only=True)
class RateRange:
    """Learning rates from ``least`` at step 0 to ``most`` at step ``steps - 1``, evenly spaced in
    the logarithm. Raises UserError unless ``least`` is below ``most``.
    """

    least: float
    most: float
    steps: int

    def __post_init__(self) -> None:
        if self.least >= self.most:
            raise UserError(
                f"finder.lr_min={self.least:g} is not below finder.lr_max={self.most:g}: change one"
            )

    def rate(self, step: int) -> float:
        """The rate at a step, constant from the last one on."""
        progress = min(step / (self.steps - 1), 1.0)
        return self.least * (self.most / self.least) ** progress


def rising(optimizer: Optimizer, steps_per_epoch: int, *, span: RateRange, base: float) -> LambdaLR:
    """A schedule in which a group with the rate ``base`` passes through ``span``, and the others
    through the same multiples of their rates. The length of an epoch has no effect.
    """
    return LambdaLR(optimizer, lambda step: span.rate(step) / base)


class LossCurve(Callback):
    """Collects in ``losses`` the loss of each optimiser step, before the step is taken. Stops the
    training when the mean of the last ``window`` losses is not finite or exceeds ``divergence``
    times the lowest such mean.
    """

    def __init__(self, divergence: float, window: int = 5) -> None:
        self.divergence, self.window = divergence, window
        self.losses: list[float] = []
        self._lowest = math.inf
        self._sum, self._batches = 0.0, 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add the loss of a batch, which Lightning has divided by the accumulated batches."""
        self._sum += float(outputs["loss"]) * trainer.accumulate_grad_batches
        self._batches += 1
        if trainer.global_step == len(self.losses):
            return  # gradients are still accumulated
        self.losses.append(self._sum / self._batches)
        self._sum, self._batches = 0.0, 0
        recent = float(np.mean(self.losses[-self.window :]))
        if len(self.losses) >= self.window:
            self._lowest = min(self._lowest, recent)
        if not math.isfinite(recent) or recent > self.divergence * self._lowest:
            trainer.should_stop = True


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """``losses`` at ``rates``, one pair per optimiser step, all finite."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @classmethod
    def of(cls, span: RateRange, losses: Sequence[float]) -> RangeTest:
        """From the losses of a run through ``span``, without those that are not finite.

        Raises UserError where fewer than ``MIN_STEPS`` are left.
        """
        kept = [(span.rate(step), x) for step, x in enumerate(losses) if math.isfinite(x)]
        if len(kept) < MIN_STEPS:
            raise UserError(
                f"the loss diverged after {len(kept)} of {span.steps} steps: lower "
                f"finder.lr_min={span.least:g}, or raise finder.steps"
            )
        rates, finite = zip(*kept, strict=True)
        return cls(rates=rates, losses=finite)

    @property
    def smoothed(self) -> np.ndarray:
        """The losses (S,) smoothed by a moving linear fit, which has no lag."""
        return self._filtered(derivative=0)

    def _filtered(self, derivative: int) -> np.ndarray:
        """Savitzky-Golay filter (S,): linear fits over a tenth of the steps."""
        filtered = savgol_filter(
            self.losses, self._window, polyorder=1, deriv=derivative, mode="nearest"
        )
        return np.asarray(filtered)

    @property
    def _window(self) -> int:
        """Steps per fit: odd, so that it is centred."""
        return max(5, len(self.losses) // 10) | 1

    @property
    def signal(self) -> float:
        """The fall of the smoothed loss to its minimum, in standard errors of the smoothed loss."""
        smoothed = self.smoothed
        fall = smoothed[: int(smoothed.argmin()) + 1].max() - smoothed.min()
        noise = (np.asarray(self.losses) - smoothed).std() / math.sqrt(self._window)
        return float(fall / noise) if noise > 0 else math.inf if fall > 0 else 0.0

    def suggestion(self) -> float:
        """The rate, to two digits, where the smoothed loss falls most steeply over the logarithm of
        the rate, before its minimum.

        Raises UserError where the fall is not significant (``MIN_SIGNAL``).
        """
        if self.signal < MIN_SIGNAL:
            raise UserError(
                f"from a rate of {self.rates[0]:g} to {self.rates[-1]:g} the loss does not fall "
                "beyond its noise: change finder.lr_min and finder.lr_max, or raise finder.steps"
            )
        slopes = self._filtered(derivative=1)[: int(self.smoothed.argmin()) + 1]
        return float(f"{self.rates[int(slopes.argmin())]:.1e}")

    def figure(self, suggestion: float) -> Figure:
        """A plot of the losses over the rates, with the suggestion."""
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, ".", color="0.6", label="of each step")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        axes.axvline(suggestion, color="tab:red", label=f"optimizer.lr={suggestion:g}")
        axes.set(xscale="log", xlabel="optimizer.lr", ylabel="loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower left")
        return figure
