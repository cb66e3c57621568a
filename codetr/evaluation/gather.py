"""Tensors of different lengths from all processes, put one after the other."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def _single() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def _device() -> torch.device:
    """Where the backend wants its tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def is_first_rank() -> bool:
    """True on rank 0 and in a single process."""
    return _single() or dist.get_rank() == 0


def gather_rows(rows: Tensor) -> Tensor:
    """CPU rows (n_rank, C) of every rank in rank order, (sum n_rank, C), on every rank."""
    if _single():
        return rows
    device, world = _device(), dist.get_world_size()
    count = torch.tensor([len(rows)], device=device)
    counts = [torch.zeros_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    lengths = [int(c) for c in counts]
    padded = rows.new_zeros(max(lengths), rows.shape[1], device=device)
    padded[: len(rows)] = rows.to(device)
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([p[:n].cpu() for p, n in zip(parts, lengths, strict=True)])


def broadcast_from_first(values: Tensor) -> Tensor:
    """Rank 0's CPU tensor on every rank; all give one of the same shape and dtype."""
    if _single():
        return values
    shared = values.to(_device())
    dist.broadcast(shared, src=0)
    return shared.cpu()
