"""The state of Lightning's loops in a checkpoint, adjusted so that a run resumes exactly.

Lightning resumes from counters of batches and epochs that are ready, started, processed and
completed, and infers from their differences where the checkpoint was written. It expects
checkpoints written within its own hooks, before the last step is logged. Ours are written between
steps, after logging, so the counters have to be adjusted.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from lightning.pytorch import Trainer

Progress = dict[str, Any]
"""The progress of epochs or batches: ``total`` and ``current``, each with the four counters."""


class Moment(Enum):
    """The points of a run at which no step or validation is incomplete."""

    STEPS = "between two optimiser steps of an epoch"
    EPOCHS = "between two epochs"
    VALIDATION = "before a validation"
    END = "after training"


def adjust_counters(loop: dict[str, Any], moment: Moment, validated: bool) -> None:
    """Change ``loop``, the ``loops.fit_loop`` of a checkpoint, in place, so that Lightning resumes
    right after ``moment``. ``validated``: a validation has run since the last batch.

    At ``STEPS`` and ``EPOCHS`` the next batch has been fetched but not trained on.
    """
    epoch: Progress = loop["epoch_progress"]
    batch: Progress = loop["epoch_loop.batch_progress"]
    if moment in (Moment.STEPS, Moment.EPOCHS):
        for count in (batch["total"], batch["current"]):
            count["ready"] -= 1
        batch["is_last_batch"] = False  # the flag is already the next batch's
    if moment is Moment.STEPS and validated:
        # Lightning will skip the validation, but count the step before it again
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    if moment is Moment.EPOCHS:  # the epoch starts on resuming
        for count in (epoch["total"], epoch["current"]):
            count["ready"] = count["started"] = count["processed"]
    if moment is Moment.VALIDATION:  # as if interrupted in its first batch, so that it runs again
        validation: Progress = loop["epoch_loop.val_loop.batch_progress"]
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation.update(total=begun, current=dict.fromkeys(begun, 0), is_last_batch=False)


def is_validated(trainer: Trainer) -> bool:
    """In ``on_train_batch_start``: whether a validation has run since the previous batch."""
    loop, every = trainer.fit_loop.epoch_loop, trainer.val_check_batch  # type: ignore[attr-defined]
    if not (isinstance(every, int) and loop._should_check_val_epoch()):
        return False
    progress = loop.batch_progress
    of_epoch = trainer.check_val_every_n_epoch is not None
    before = (progress.current if of_epoch else progress.total).ready - 1
    return before > 0 and before % every == 0


def rescale_position(trainer: Trainer, images_before: int, images_now: int) -> None:
    """Convert the position in a restored epoch from batches of ``images_before`` images (over all
    processes) to batches of ``images_now``, rounded down to a whole optimiser step.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    if progress.is_last_batch:  # only the validation is left
        batches = int(trainer.num_training_batches)
    else:
        batches = progress.current.completed * images_before // images_now
        batches -= batches % trainer.accumulate_grad_batches
    for name in ("ready", "started", "processed", "completed"):
        setattr(progress.current, name, batches)
