"""The learning-rate range test (Smith 2017, "Cyclical learning rates", section 3.3).

The rate rises exponentially from step to step; it is best where the loss falls most steeply.
Lightning's ``Tuner.lr_find`` gives all parameter groups the same rate and so would test another
optimiser than the one that is trained with. Here the rise is a schedule, a factor on the rate of
every group, as in training: the groups keep their ratios, and clipping and accumulation are those
of training.
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

FEWEST = 10
"""Steps before the loss diverges, of which a rate can be told."""
CLEAR = 8.0
"""Standard errors by which the loss has to fall: noise alone does so in one of a hundred tests of
100 steps or fewer.
"""


@dataclass(frozen=True, kw_only=True)
class RateRange:
    """Learning rates from ``least`` at step 0 to ``most`` at step ``steps`` - 1, evenly spaced in
    their logarithm. Raises UserError where ``least`` is not below ``most``.
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
        """The rate of a step; that of the last one from there on."""
        progress = min(step / (self.steps - 1), 1.0)
        return self.least * (self.most / self.least) ** progress


def rising(optimizer: Optimizer, steps_per_epoch: int, *, span: RateRange, base: float) -> LambdaLR:
    """A schedule that takes a group whose rate is ``base`` through ``span``, and the others to the
    same multiples of their own rates, whatever the length of an epoch.
    """
    return LambdaLR(optimizer, lambda step: span.rate(step) / base)


class LossCurve(Callback):
    """Collects in ``losses`` the loss of every optimiser step, before the step is taken, and stops
    training where it is not finite, or more than ``divergence`` times the lowest one. Both are
    means over ``window`` steps then, so that no single batch decides.
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
        """Add the loss of a batch, which Lightning has divided by the batches of a whole step."""
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
        """Of the losses of a run through ``span``; those that are not finite are left out.

        Raises UserError where fewer than ``FEWEST`` are left.
        """
        kept = [(span.rate(step), x) for step, x in enumerate(losses) if math.isfinite(x)]
        if len(kept) < FEWEST:
            raise UserError(
                f"the loss diverged after {len(kept)} of {span.steps} steps: lower "
                f"finder.lr_min={span.least:g}, or raise finder.steps"
            )
        rates, finite = zip(*kept, strict=True)
        return cls(rates=rates, losses=finite)

    @property
    def smoothed(self) -> np.ndarray:
        """(S,) the curve by moving straight lines, which do not lag behind it."""
        return self._filtered(derivative=0)

    def _filtered(self, derivative: int) -> np.ndarray:
        """(S,) by straight lines over a tenth of the steps; no line is drawn beyond the ends."""
        filtered = savgol_filter(
            self.losses, self._window, polyorder=1, deriv=derivative, mode="nearest"
        )
        return np.asarray(filtered)

    @property
    def _window(self) -> int:
        """Steps that a line is laid through: an odd number, as many before as behind."""
        return max(5, len(self.losses) // 10) | 1

    @property
    def signal(self) -> float:
        """How far the smoothed loss falls to its lowest, in standard errors of its means."""
        smoothed = self.smoothed
        fall = smoothed[: int(smoothed.argmin()) + 1].max() - smoothed.min()
        noise = (np.asarray(self.losses) - smoothed).std() / math.sqrt(self._window)
        return float(fall / noise) if noise > 0 else math.inf if fall > 0 else 0.0

    def suggestion(self) -> float:
        """The rate where the smoothed loss falls most steeply over the logarithm of the rate,
        before it is lowest; to two digits, since it is known no better.

        Raises UserError where the loss falls no further than by chance.
        """
        if self.signal < CLEAR:
            raise UserError(
                f"from a rate of {self.rates[0]:g} to {self.rates[-1]:g} the loss does not fall "
                "beyond its noise: change finder.lr_min and finder.lr_max, or raise finder.steps"
            )
        slopes = self._filtered(derivative=1)[: int(self.smoothed.argmin()) + 1]
        return float(f"{self.rates[int(slopes.argmin())]:.1e}")

    def figure(self, suggestion: float) -> Figure:
        """The losses over the rates, with the suggestion."""
        figure = Figure(figsize=(7.5, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, ".", color="0.6", label="of each step")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        axes.axvline(suggestion, color="tab:red", label=f"optimizer.lr={suggestion:g}")
        axes.set(xscale="log", xlabel="optimizer.lr", ylabel="loss")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        return figure
