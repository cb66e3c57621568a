"""What is seen in the terminal while training runs."""

from __future__ import annotations

import logging
import sys
import time

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

log = logging.getLogger(__name__)


def progress_bar(refresh_rate: int = 1) -> ProgressBar:
    """A rich progress bar; none where the output is not a terminal (``EpochLine`` remains)."""
    if sys.stdout.isatty():
        return RichProgressBar(refresh_rate=refresh_rate)
    return SilentProgressBar()


LINE = ("loss", "val/AP", "val/AP50", "val/mask_AP")
"""What the line of an epoch tells, as far as it is measured."""


class SilentProgressBar(ProgressBar):
    """Keeps Lightning from adding its own bar."""

    def disable(self) -> None:
        """Nothing to switch off."""

    def enable(self) -> None:
        """Nothing to switch on."""


class EpochLine(Callback):
    """One line in the log per epoch, which files and pipes can show too."""

    def __init__(self, names: tuple[str, ...] = LINE) -> None:
        self.names = tuple(names)
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock here too: resuming in the middle of an epoch does not start it."""
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line; the epoch's validation is over by now."""
        if not trainer.is_global_zero:
            return
        values = trainer.callback_metrics
        shown = [f"{name} {float(values[name]):.4g}" for name in self.names if name in values]
        taken = time.perf_counter() - self._start
        log.info(
            "epoch %d/%s: %s",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            " | ".join([*shown, f"{taken:.1f} s"]),
        )
