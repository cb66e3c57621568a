"""Batches that know the box counts of their optimiser step, from any position in an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer

from codetr.data.samplers import TrainSampler
from codetr.data.workers import SignalSafeLoader
from codetr.structures import Batch


@dataclass(frozen=True)
class Window:
    """The range of batches of an epoch to train on: those before ``start`` were trained on before
    the run was interrupted; those from ``stop`` on are excluded (None: none is).
    """

    start: int = 0
    stop: int | None = None


def remaining_batches(trainer: Trainer | None) -> Window:
    """The rest of the epoch that a Trainer is about to train; the whole epoch if it is not
    training.
    """
    if trainer is None or not trainer.training:
        return Window()
    loop = trainer.fit_loop
    stop = loop.max_batches  # depends on trainer.limit_train_batches
    done = loop.epoch_loop.batch_progress.current.ready
    return Window(start=done, stop=None if math.isinf(stop) else int(stop))


class StepLoader(SignalSafeLoader[Batch]):
    """A loader for gradient accumulation over ``step_batches`` consecutive batches (fewer at the
    end of an epoch): each batch gets the box counts of all batches of its optimiser step.

    It prefetches the batches of one step, reading them one by one while those of the previous step
    are used. ``window`` is called at the start of an epoch; with a TrainSampler, images of skipped
    batches are not read.
    """

    def __init__(
        self,
        *args: Any,
        step_batches: int = 1,
        window: Callable[[], Window] = Window,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.step_batches = step_batches
        self.window = window

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        window = self.window()
        batches = self._from(window.start)
        if window.stop is not None:
            batches = islice(batches, max(window.stop - window.start, 0))
        ahead = list(islice(batches, self.step_batches - window.start % self.step_batches))
        while ahead:
            current, ahead = ahead, []
            step = tuple(batch.counts for batch in current)
            missing = self.step_batches
            for batch in current:
                yield replace(batch, step=step)
                ahead.extend(islice(batches, 1))
                missing -= 1
            ahead.extend(islice(batches, missing))

    def _from(self, start: int) -> Iterator[Batch]:
        """The batches of this epoch from number ``start`` on."""
        if isinstance(self.sampler, TrainSampler):
            self.sampler.start = start
            return super().__iter__()
        return islice(super().__iter__(), start, None)
