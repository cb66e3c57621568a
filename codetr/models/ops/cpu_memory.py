"""Memory allocation of processes that compute on the CPU."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's <malloc.h>


def keep_freed_memory() -> bool:
    """Let this process keep what tensors free for the next ones, until it ends.

    By default glibc returns tensors above 32 MiB to the system, which hands them back filled with
    zeros: in a training step on the CPU that is up to a third of the time. In exchange the process
    never shrinks, and fragmentation by tensors of varying sizes may let it grow beyond its peak
    use. Forked processes inherit this. Returns whether the system supports it (Linux with glibc).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, macOS, Windows
        return False
    # no mapping per tensor, no trimming at the end, one heap for all threads
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return sum(mallopt(name, value) for name, value in settings) == len(settings)
