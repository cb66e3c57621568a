"""Asynchronous copies from the device to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of ``tensor``, detached, on the host. ``result`` waits for it.

    On CUDA the copy starts at once, into pinned memory, and overlaps with work that is enqueued
    before ``result`` is called.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._tensor = tensor.detach()
        if tensor.is_cuda:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor = host.copy_(self._tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def result(self) -> Tensor:
        """The copy, once it is complete."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor.cpu()
