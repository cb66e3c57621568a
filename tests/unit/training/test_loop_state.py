"""A position in an epoch, counted anew on another number of devices."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loops.progress import _BatchProgress

from codetr.training.loop_state import Moment, adjust_counters, rescale_position


@pytest.mark.parametrize(
    ("before", "now", "accumulated", "batches", "expected"),
    [
        (4, 2, 1, 5, 10),  # two devices, then one
        (2, 4, 1, 10, 5),
        (2, 4, 1, 11, 5),  # rounded down: two images come twice
        (4, 2, 4, 5, 8),  # to a whole optimiser step
        (4, 4, 2, 6, 6),
    ],
)
def test_the_same_images_are_done(
    before: int, now: int, accumulated: int, batches: int, expected: int
) -> None:
    progress = restored(batches, last=False)
    rescale_position(trainer(progress, accumulated), before, now)
    assert set(vars(progress.current).values()) == {expected}


def test_an_epoch_of_which_the_validation_is_left_stays_one() -> None:
    progress = restored(6, last=True)
    rescale_position(trainer(progress, 4), 4, 2)
    assert progress.current.ready == 11


@pytest.mark.parametrize("moment", [Moment.STEPS, Moment.EPOCHS])
def test_a_last_batch_that_is_still_to_come_is_not_behind(moment: Moment) -> None:
    progress = restored(2, last=False)
    progress.is_last_batch = True  # of the batch that has been fetched
    progress.increment_ready()
    epoch = {name: {"ready": 1, "started": 1, "processed": 0} for name in ("total", "current")}
    loop = {
        "epoch_progress": epoch,
        "epoch_loop.batch_progress": progress.state_dict(),
        "epoch_loop.state_dict": {"_batches_that_stepped": 2},
    }
    adjust_counters(loop, moment, validated=False)
    progress.load_state_dict(loop["epoch_loop.batch_progress"])
    rescale_position(trainer(progress, 2), 4, 2)
    assert progress.current.ready == 4


def restored(batches: int, last: bool) -> _BatchProgress:
    progress = _BatchProgress(is_last_batch=last)
    progress.increment_by(batches, is_last_batch=last)
    return progress


def trainer(progress: _BatchProgress, accumulated: int) -> Any:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(
        fit_loop=loop, accumulate_grad_batches=accumulated, num_training_batches=11
    )
