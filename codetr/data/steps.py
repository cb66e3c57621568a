"""Batches that know which others share their optimiser step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from codetr.structures import Batch


class StepLoader(DataLoader[Batch]):
    """A loader of batches of which ``step_batches`` in a row are accumulated to one optimiser step
    (the last ones of an epoch may be fewer): each knows the box counts of all of them.

    It is ahead by the batches of one step, read one by one while those of the step before are used.
    """

    def __init__(self, *args: Any, step_batches: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step_batches = step_batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        ahead = list(islice(batches, self.step_batches))
        while ahead:
            current, ahead = ahead, []
            step = tuple(batch.counts for batch in current)
            for batch in current:
                yield replace(batch, step=step)
                ahead.extend(islice(batches, 1))
