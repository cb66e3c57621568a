"""What processes ask each other."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_alone() -> bool:
    """Whether this is the only process."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def is_first_rank() -> bool:
    """True on rank 0 and in a single process."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a detached tensor over all processes; the value itself in a single process."""
    if is_alone():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gathered(value: T) -> list[T]:
    """What each process gives, in the order of ranks; any object of plain types."""
    if is_alone():
        return [value]
    found: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


class Agreement:
    """Callable that tells all processes the same: the largest of the numbers that each one gave at
    the call *before*, so that none has to wait for the others' answers. The first call tells zeros.

    A single process is told what it gives. Numbers stay on the host: no device is waited for.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[dist.Work, Tensor] | None = None

    def __call__(self, *own: int) -> list[int]:
        """All processes have to call it together, equally often."""
        if is_alone():
            return list(own)
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        told = [0] * len(own)
        if self._pending is not None:
            work, values = self._pending
            work.wait()
            told = values.tolist()
        values = torch.tensor(own)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None
        self._pending = (work, values)
        return told
