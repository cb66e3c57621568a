"""Keeping the run's state, so that nothing is lost when it is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from codetr.errors import UserError
from codetr.run_folder import RunFolder


class LastCheckpoint(Checkpoint):
    """Writes ``<folder>/last.ckpt`` after every epoch, every ``every_n_steps`` optimiser steps if
    set, and when the run is stopped by SIGTERM or Ctrl-C. ``ckpt_path=last`` resumes from there.
    """

    def __init__(self, folder: str | Path, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(
                f"checkpointing.last.every_n_steps={every_n_steps}: give a positive number or null"
            )
        self.path = RunFolder(Path(folder)).last
        self.every_n_steps = every_n_steps
        self._saved_step = 0  # at step 0 there is nothing to lose

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save within an epoch."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._saved_step:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after training and validation of an epoch."""
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save when the run is stopped from outside; after an error the weights are suspect."""
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if stopped and trainer.global_step > self._saved_step and not trainer.sanity_checking:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)
