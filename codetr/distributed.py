"""What processes ask each other."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def is_first_rank() -> bool:
    """True on rank 0 and in a single process."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a detached tensor over all processes; the value itself in a single process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
