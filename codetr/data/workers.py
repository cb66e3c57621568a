"""Worker processes of loaders in a run that a signal may stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

T = TypeVar("T")
STOPPING = (signal.SIGINT, signal.SIGTERM)


class SteadyLoader(DataLoader[T]):
    """A DataLoader whose workers do not heed the signals that stop a run: those are for the main
    process, which goes on using its workers up to a point where it can be continued from.

    A terminal and a cluster send them to all processes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"worker_init_fn": leave_signals, **kwargs})

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        # Workers start with them blocked, since one may come before they can ignore it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals(worker: int) -> None:
    """In a worker: ignore what stops a run."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
