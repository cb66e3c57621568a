"""Communication between the processes of a run."""

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
    """The mean of a tensor over all processes, detached."""
    if is_alone():
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gathered(value: T) -> list[T]:
    """The ``value`` of each process in rank order; any picklable object."""
    if is_alone():
        return [value]
    found: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


class Agreement:
    """Callable that returns the same on all processes: the maximum over processes of the numbers
    given at the *previous* call, so that no process waits for the others. The first call returns
    zeros.

    A single process gets its own numbers. They stay on the CPU: there is no device synchronisation.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[dist.Work, Tensor] | None = None

    def __call__(self, *own: int) -> list[int]:
        """All processes must call it equally often."""
        if is_alone():
            return list(own)
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        agreed = [0] * len(own)
        if self._pending is not None:
            work, values = self._pending
            work.wait()
            agreed = values.tolist()
        values = torch.tensor(own)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None
        self._pending = (work, values)
        return agreed
