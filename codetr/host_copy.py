"""Numbers on their way from the device to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of ``tensor`` (detached) on the host, which ``result`` waits for.

    On CUDA it begins at once, into pinned memory, and the device goes on with what is enqueued
    behind it: work that is given to the device between the two calls is done meanwhile.
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
        """The copy, when it has arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor.cpu()
