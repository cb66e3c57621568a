"""Progress of a training run in the terminal and the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from torch import Tensor

from codetr.training.callbacks.results import BestResult
from codetr.training.loss_meter import TOTAL, LossMeter

log = logging.getLogger(__name__)

_WARM_UP = 2  # first batches, which are slower


class RunClock:
    """Estimates the remaining time of a run from the mean time per batch, validations included."""

    def __init__(self) -> None:
        self._start, self._done = 0.0, -_WARM_UP

    def count(self) -> None:
        """Call after each batch."""
        self._done += 1
        if self._done == 0:
            self._start = time.perf_counter()

    @property
    def done(self) -> int:
        """The number of timed batches."""
        return max(self._done, 0)

    @property
    def per_batch(self) -> float | None:
        """Mean seconds per batch; None before the first timed one."""
        return (time.perf_counter() - self._start) / self._done if self._done > 0 else None

    def left(self, trainer: Trainer, batch_idx: int) -> float | None:
        """Remaining seconds after batch ``batch_idx`` of the epoch; None if not known."""
        epochs, batches = trainer.max_epochs, trainer.num_training_batches
        if self.per_batch is None or not epochs or epochs < 0 or batches == float("inf"):
            return None
        done = trainer.current_epoch * batches + batch_idx + 1
        return self.per_batch * max(epochs * batches - done, 0)


def duration(seconds: float) -> str:
    """A duration as text, such as ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def best_ap(trainer: Trainer) -> float | None:
    """The highest validation AP so far; None before the first."""
    best = next((c for c in trainer.callbacks if isinstance(c, BestResult)), None)  # type: ignore[attr-defined]
    return best.metrics.get("AP") if best else None


def progress_bar(refresh_rate: int = 1) -> ProgressBar:
    """A rich progress bar, or a silent one where the output is not a terminal."""
    if sys.stdout.isatty():
        return RunProgressBar(refresh_rate=refresh_rate)
    return SilentProgressBar()


LINE = ("loss", "val/AP", "val/AP50", "val/mask_AP")
"""The values that the line of an epoch shows, where available."""


class RunProgressBar(RichProgressBar):
    """Shows epochs counted from 1, the loss from the first step on, the best AP so far and the
    remaining time of the run.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.clock = RunClock()
        self._loss: Tensor | None = None
        self._batch = 0

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count, and store the loss, which is shown until one is logged."""
        self.clock.count()
        self._batch = batch_idx
        self._loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _get_train_description(self, current_epoch: int) -> str:
        most = self.trainer.max_epochs
        return f"epoch {current_epoch + 1}" + (f"/{most}" if most and most > 0 else "")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The values shown after the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if "loss" not in shown and isinstance(self._loss, Tensor):
            # synchronises with the device, but only until the first loss is logged
            shown = {"loss": float(self._loss.detach()), **shown}
        best, left = best_ap(trainer), self.clock.left(trainer, self._batch)
        if best is not None:
            shown["best AP"] = round(best, 3)
        if left is not None:
            shown["left"] = duration(left)
        return shown


class SilentProgressBar(ProgressBar):
    """Prevents Lightning from adding its own bar."""

    def disable(self) -> None:
        """Do nothing."""

    def enable(self) -> None:
        """Do nothing."""


class EpochLine(Callback):
    """Log lines, also for files and pipes: the expected duration of the run after ``first``
    batches, one line per epoch, and without a terminal one line every ``minutes`` minutes.
    """

    def __init__(
        self,
        names: tuple[str, ...] = LINE,
        first: int = 8,
        minutes: float = 3.0,
    ) -> None:
        self.names = tuple(names)
        self.first, self.minutes = first, minutes
        self.clock = RunClock()
        self._start = self._line = 0.0
        self._validated = False  # in this epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock here too: resuming in the middle of an epoch does not start it."""
        self._start = self._line = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock."""
        self._start = time.perf_counter()
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on, the metrics of a validation are those of this epoch."""
        self._validated = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the expected duration or a regular line."""
        self.clock.count()
        if not trainer.is_global_zero:
            return
        left = self.clock.left(trainer, batch_idx)
        if self.clock.done == self.first and left is not None:
            log.info(
                "%.2g s per batch: about %s to the last of %s epochs, validation not counted",
                *(self.clock.per_batch, duration(left), trainer.max_epochs),
            )
        now = time.perf_counter()
        if not sys.stdout.isatty() and now - self._line > 60 * self.minutes:
            self._line = now
            shown = self._values(trainer)
            if left is not None:
                shown.append(f"{duration(left)} left")
            log.info(
                "epoch %d/%s, batch %d/%s: %s",
                *(trainer.current_epoch + 1, trainer.max_epochs),
                *(batch_idx + 1, trainer.num_training_batches, " | ".join(shown)),
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the line of the epoch, whose validation is complete. The module logs what is left of
        the losses only after this.
        """
        if not trainer.is_global_zero:
            return
        self._line = time.perf_counter()
        taken = self._line - self._start
        meter: LossMeter = pl_module.meter  # type: ignore[assignment]
        log.info(
            "epoch %d/%s: %s",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            " | ".join([*self._values(trainer, meter.pending), f"{taken:.1f} s"]),
        )

    def _values(self, trainer: Trainer, pending: float | None = None) -> list[str]:
        """The values of this epoch; ``pending``: a total loss that is newer than the logged one."""
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith("val/")
        }
        if pending is not None:
            values[TOTAL] = pending
        return [f"{name} {values[name]:.4g}" for name in self.names if name in values]
