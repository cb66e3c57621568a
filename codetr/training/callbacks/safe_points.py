"""Where a run can be kept and stopped without losing or repeating anything."""

from __future__ import annotations

import logging
import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from codetr.distributed import Agreement
from codetr.training import stopping
from codetr.training.callbacks.checkpoints import LastCheckpoint
from codetr.training.loop_state import Moment, is_validated, move_to, put_at_rest

log = logging.getLogger(__name__)


class SafePoints(Callback):
    """Has ``LastCheckpoint`` write, and stops a run that got a signal (``StopSignals``), where all
    is done and logged: between optimiser steps, between epochs, before a validation and after
    training. Within a validation a run is stopped at the next batch, and kept as before the first.

    Several processes do both at the same step. Within a validation they cannot agree on one, and
    so are kept before each. It comes first among callbacks, so that they have not changed the
    weights yet (an average replaces them at the end of training).
    """

    def __init__(self) -> None:
        self._moment: Moment | None = None  # while a checkpoint is written
        self._kept: tuple[int, Moment] | None = None
        self._where: str | None = None
        self._sizes: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._agree = Agreement()
        self._written = 0  # by all processes alike

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals from Lightning, which would stop at any batch, and wait for the device
        before every batch to ask other processes.
        """
        self._agree, self._written = Agreement(), 0
        resumed = trainer.fit_loop.restarting
        self._kept = None if resumed else (trainer.global_step, Moment.EPOCHS)
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
                _tell_change(before, self._sizes)
            move_to(trainer, before["images"], images)
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
        """Between optimiser steps, of which this is the first batch of the next."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        moment = Moment.STEPS if batch_idx else Moment.EPOCHS
        signum, due = self._agreed(trainer, moment)
        if signum or due:
            self._keep(trainer, moment)
        self._stop(signum)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a validation, which may take long."""
        if not _has_trained(trainer):
            return
        signum, due = self._agreed(trainer, Moment.VALIDATION)
        if signum or due or trainer.world_size > 1:
            self._keep(trainer, Moment.VALIDATION)
        self._stop(signum)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Each process for itself: they need not have equally many batches here."""
        signum = _asked()
        if signum and trainer.world_size == 1 and _has_trained(trainer):
            self._keep(trainer, Moment.VALIDATION)
        self._stop(signum)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last epoch."""
        self._keep(trainer, Moment.END)
        signals = stopping.current()
        if signals is not None:
            signals.deferred = False
        self._stop(_asked())

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say where the run is, as Lightning understands it."""
        if self._moment is not None:
            loop = checkpoint["loops"]["fit_loop"]
            put_at_rest(loop, self._moment, is_validated(trainer))

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: what positions are counted in."""
        return dict(self._sizes)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._before = dict(state_dict)

    def _agreed(self, trainer: Trainer, moment: Moment) -> tuple[int, bool]:
        """The signal that some process got, or 0; whether to write.

        Clocks differ, so a process whose time has come asks all for the writing that is next; what
        was asked for before the last writing is answered by it.
        """
        keepers = _keepers(trainer)
        rested = any(keeper.rested(moment is Moment.STEPS) for keeper in keepers)
        signum, asked = self._agree(_asked(), (self._written + 1) * int(rested))
        due = any(keeper.due(trainer.global_step) for keeper in keepers)
        return signum, due or asked > self._written

    def _keep(self, trainer: Trainer, moment: Moment) -> None:
        now = (trainer.global_step, moment)
        if self._kept == now:
            return
        self._moment = moment
        try:
            for keeper in _keepers(trainer):
                keeper.save(trainer)
                self._where = (
                    f"kept at step {trainer.global_step} in {os.path.relpath(keeper.path)}"
                )
        finally:
            self._moment = None
        self._kept = now
        self._written += 1

    def _stop(self, signum: int) -> None:
        if signum:
            raise stopping.Stopped(signum, self._where)


def _keepers(trainer: Trainer) -> list[LastCheckpoint]:
    return [c for c in trainer.callbacks if isinstance(c, LastCheckpoint)]  # type: ignore[attr-defined]


def _has_trained(trainer: Trainer) -> bool:
    """Whether a validation comes after something that was trained."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return not trainer.sanity_checking and progress.total.ready > 0


def _asked() -> int:
    """The signal that this process got, or 0."""
    signals = stopping.current()
    return (signals.signum or 0) if signals is not None else 0


@rank_zero_only
def _tell_change(before: dict[str, int], now: dict[str, int]) -> None:
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
