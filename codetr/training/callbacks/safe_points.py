"""The points of a run at which it can be saved and stopped without losing or repeating a step."""

from __future__ import annotations

import logging
import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from codetr.distributed import Agreement
from codetr.training import stopping
from codetr.training.callbacks.checkpoints import LastCheckpoint
from codetr.training.loop_state import Moment, adjust_counters, is_validated, rescale_position

log = logging.getLogger(__name__)


class SafePoints(Callback):
    """Calls ``LastCheckpoint.save`` and stops a run that received a signal (``StopSignals``) where
    everything is complete and logged: between optimiser steps, between epochs, before a validation
    and after training. A signal within a validation stops the run at the next batch, in the state
    before that validation.

    All processes save and stop at the same step. They cannot agree on one within a validation, so
    several processes save before each. This must be the first callback: later ones may replace the
    weights (by their average at the end of training).
    """

    def __init__(self) -> None:
        self._moment: Moment | None = None  # only while a checkpoint is written
        self._saved: tuple[int, Moment] | None = None
        self._where: str | None = None
        self._sizes: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._agree = Agreement()
        self._writes = 0  # equal on all processes

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handling of signals, which would stop at any batch and synchronise
        with the device and the other processes before each.
        """
        self._agree, self._writes = Agreement(), 0
        resumed = trainer.fit_loop.restarting
        self._saved = None if resumed else (trainer.global_step, Moment.EPOCHS)
        accumulated = trainer.accumulate_grad_batches
        images: int = pl_module.effective_batch // accumulated  # type: ignore[assignment,operator]
        self._sizes = {
            "processes": trainer.world_size,
            "images": images,
            "accumulated": accumulated,
        }
        before = {**self._sizes, **self._before}
        if resumed and before != self._sizes:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            if progress.current.completed and not progress.is_last_batch:
                _warn_of_change(before, self._sizes)
            rescale_position(trainer, before["images"], images)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        signals = stopping.current()
        if signals is not None:
            launcher = trainer.strategy.launcher
            signals.forward = None if launcher is None else launcher.kill
            signals.deferred = True
            signals.install()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch of an optimiser step."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        moment = Moment.STEPS if batch_idx else Moment.EPOCHS
        signum, due = self._agreed(trainer, moment)
        if signum or due:
            self._save(trainer, moment)
        self._stop(signum)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a validation."""
        if not _has_trained(trainer):
            return
        signum, due = self._agreed(trainer, Moment.VALIDATION)
        if signum or due or trainer.world_size > 1:
            self._save(trainer, Moment.VALIDATION)
        self._stop(signum)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Before a batch of a validation, whose number may differ between processes."""
        signum = _received()
        if signum and trainer.world_size == 1 and _has_trained(trainer):
            self._save(trainer, Moment.VALIDATION)
        self._stop(signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last epoch."""
        self._save(trainer, Moment.END)
        signals = stopping.current()
        if signals is not None:
            signals.deferred = False
        self._stop(_received())

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adjust the position of the run in the checkpoint."""
        if self._moment is not None:
            loop = checkpoint["loops"]["fit_loop"]
            adjust_counters(loop, self._moment, is_validated(trainer))

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the sizes in which positions are counted."""
        return dict(self._sizes)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._before = dict(state_dict)

    def _agreed(self, trainer: Trainer, moment: Moment) -> tuple[int, bool]:
        """The signal that any process received, or 0, and whether to save.

        Clocks differ, so a process for which saving is due by time requests the next write, by its
        number. A request that arrives after that write is void.
        """
        checkpoints = _last_checkpoints(trainer)
        due = any(c.due_by_time(moment is Moment.STEPS) for c in checkpoints)
        signum, requested = self._agree(_received(), (self._writes + 1) * int(due))
        due_by_step = any(c.due_by_step(trainer.global_step) for c in checkpoints)
        return signum, due_by_step or requested > self._writes

    def _save(self, trainer: Trainer, moment: Moment) -> None:
        now = (trainer.global_step, moment)
        if self._saved == now:
            return
        self._moment = moment
        try:
            for checkpoint in _last_checkpoints(trainer):
                checkpoint.save(trainer)
                self._where = (
                    f"kept at step {trainer.global_step} in {os.path.relpath(checkpoint.path)}"
                )
        finally:
            self._moment = None
        self._saved = now
        self._writes += 1

    def _stop(self, signum: int) -> None:
        if signum:
            raise stopping.Stopped(signum, self._where)


def _last_checkpoints(trainer: Trainer) -> list[LastCheckpoint]:
    return [c for c in trainer.callbacks if isinstance(c, LastCheckpoint)]  # type: ignore[attr-defined]


def _has_trained(trainer: Trainer) -> bool:
    """Whether a validation is not the sanity check and follows training."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return not trainer.sanity_checking and progress.total.ready > 0


def _received() -> int:
    """The signal that this process received, or 0."""
    signals = stopping.current()
    return (signals.signum or 0) if signals is not None else 0


@rank_zero_only
def _warn_of_change(before: dict[str, int], now: dict[str, int]) -> None:
    steps = [sizes["images"] * sizes["accumulated"] for sizes in (before, now)]
    log.warning(
        "resumed within an epoch on %d processes with %d images per step in all, after %d with %d: "
        "%s and other random draws and rounding than in an uninterrupted run",
        now["processes"],
        steps[1],
        before["processes"],
        steps[0],
        "the images that are left,"
        if steps[0] == steps[1]
        else "some images of this epoch come twice or not,",
    )
