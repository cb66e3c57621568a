"""The checkpoint that a run resumes from."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from codetr.errors import UserError
from codetr.run_folder import RunFolder


class LastCheckpoint(Checkpoint):
    """``<folder>/last.ckpt``, which ``ckpt_path=last`` resumes from.

    ``SafePoints`` calls ``save``: before a validation and between epochs, at most every
    ``seconds_apart`` seconds (otherwise short epochs would mostly be writing); within an epoch,
    every ``every_n_steps`` optimiser steps and every ``every_minutes`` minutes (None: never); when
    the run is stopped; and at its end. Raises UserError for a value out of range.
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
        """Count time and steps from here: the state so far is saved, or initial."""
        self._time, self._step = time.monotonic(), trainer.global_step

    def due_by_step(self, step: int) -> bool:
        """Whether ``every_n_steps`` requires saving after ``step`` optimiser steps."""
        return bool(self.every_n_steps and step != self._step and step % self.every_n_steps == 0)

    def due_by_time(self, within_epoch: bool) -> bool:
        """Whether enough time has passed to save, by the clock of this process. ``within_epoch``:
        not between epochs or before a validation.
        """
        elapsed = time.monotonic() - self._time
        due = self.every_minutes is not None and elapsed >= 60 * self.every_minutes
        return due or (not within_epoch and elapsed >= self.seconds_apart)

    def save(self, trainer: Trainer) -> None:
        """Write the file. All processes must call it."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path)
        self._time, self._step = time.monotonic(), trainer.global_step
