"""Data workers that survive the signals which stop a run."""

from __future__ import annotations

import atexit
import contextlib
import signal
from collections.abc import Iterator
from typing import Any, TypeVar
from weakref import WeakSet

from torch.utils.data import DataLoader

T = TypeVar("T")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ITERATORS: WeakSet[Any] = WeakSet()


class SignalSafeLoader(DataLoader[T]):
    """A DataLoader whose workers ignore the signals that stop a run. Terminals and clusters send
    them to all processes, but only the main process should react: it needs its workers until it has
    reached a point from which it can be resumed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"worker_init_fn": ignore_stop_signals, **kwargs})

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        # Workers start with the signals blocked, since one may arrive before they ignore it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            iterator = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self.num_workers > 0:
            _ITERATORS.add(iterator)
        return iterator


@atexit.register
def _stop_workers() -> None:
    """Stop the workers of loaders that still exist when Python exits: multiprocessing would send
    them SIGTERM, which they ignore, and wait for them forever.
    """
    for iterator in list(_ITERATORS):
        with contextlib.suppress(Exception):  # the others are stopped all the same
            iterator._shutdown_workers()
        for worker in iterator._workers:
            worker.kill()  # one that hangs, as in a read from a lost network folder


def ignore_stop_signals(worker: int) -> None:
    """Ignore ``STOP_SIGNALS`` in a worker."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
