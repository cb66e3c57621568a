"""Keeping the run's state, so that nothing is lost when it is killed."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from codetr.errors import UserError
from codetr.run_folder import RunFolder


class LastCheckpoint(Checkpoint):
    """``<folder>/last.ckpt``, which ``ckpt_path=last`` resumes from.

    ``SafePoints`` has it written before a validation and between epochs where the last writing was
    ``seconds_apart`` ago (short epochs would spend their time on writing), when the run is stopped,
    at its end, and within an epoch every ``every_minutes`` and every ``every_n_steps`` optimiser
    steps (None: not for that reason).
    """

    def __init__(
        self,
        folder: str | Path,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
        seconds_apart: float = 0.0,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_minutes", every_minutes)):
            if value is not None and not value > 0:
                raise UserError(
                    f"checkpointing.last.{name}={value}: give a positive number or null"
                )
        if not seconds_apart >= 0:
            raise UserError(
                f"checkpointing.last.seconds_apart={seconds_apart}: give a number of at least 0"
            )
        self.path = RunFolder(Path(folder)).last
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.seconds_apart = seconds_apart
        self._time, self._step = time.monotonic(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What has been trained until now is kept."""
        self._time, self._step = time.monotonic(), trainer.global_step

    def due(self, step: int) -> bool:
        """Whether to write after ``step`` optimiser steps, whatever the time is."""
        return bool(self.every_n_steps and step != self._step and step % self.every_n_steps == 0)

    def rested(self, within_epoch: bool) -> bool:
        """Whether it is time to write, by the clock of this process: within an epoch, or else
        between epochs and before a validation.
        """
        waited = time.monotonic() - self._time
        timely = self.every_minutes is not None and waited >= 60 * self.every_minutes
        return timely or (not within_epoch and waited >= self.seconds_apart)

    def save(self, trainer: Trainer) -> None:
        """Write the file; all processes together."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path)
        self._time, self._step = time.monotonic(), trainer.global_step
