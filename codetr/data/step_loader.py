"""Batches that know which others share their optimiser step, from any position in an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from lightning.pytorch import Trainer

from codetr.data.samplers import TrainSampler
from codetr.data.workers import SteadyLoader
from codetr.structures import Batch


@dataclass(frozen=True)
class Window:
    """Which batches of an epoch are trained on now: those before ``start`` were before the run was
    interrupted, those from ``stop`` on (None: all are) are not meant to be.
    """

    start: int = 0
    stop: int | None = None


def remaining(trainer: Trainer | None) -> Window:
    """What is left of the epoch that a Trainer is about to train; all where it is not training."""
    if trainer is None or not trainer.training:
        return Window()
    loop = trainer.fit_loop
    stop = loop.max_batches  # trainer.limit_train_batches has a say in it
    done = loop.epoch_loop.batch_progress.current.ready
    return Window(start=done, stop=None if math.isinf(stop) else int(stop))


class StepLoader(SteadyLoader[Batch]):
    """A loader of batches of which ``step_batches`` in a row are accumulated to one optimiser step
    (the last ones of an epoch may be fewer): each knows the box counts of all of them.

    It is ahead by the batches of one step, read one by one while those of the step before are used.
    ``window`` is asked when the first batch of an epoch is wanted; images before it are not read
    where a TrainSampler says what they are.
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
