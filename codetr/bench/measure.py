"""Seconds and bytes of several ways to do the same, so that a ratio of them means something."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

CPU = torch.device("cpu")


def in_turns(
    paths: Mapping[str, Callable[[], object]], repeats: int, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Seconds of each path in each turn, by name.

    After one turn to warm up, every path runs once in each of ``repeats`` turns: what else the
    machine does hits all of them. On CUDA a path ends when its kernels have.
    """
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats + 1):
        for name, path in paths.items():
            times[name].append(_seconds(path, device))
    return {name: seconds[1:] for name, seconds in times.items()}


def _seconds(path: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    path()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each path, seconds."""
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def ratio(times: Mapping[str, Sequence[float]], ours: str, baseline: str) -> float:
    """Median over the turns of ours / baseline within a turn: below 1 where ours is faster."""
    pairs = zip(times[ours], times[baseline], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def peak_memory(
    prepare: Callable[..., Callable[[], object]], *args: Any, device: torch.device = CPU
) -> int:
    """Bytes that a run takes at its peak, beyond those that stood before it.

    ``prepare(*args)`` makes the inputs and gives the run, a callable without arguments. On CUDA
    the peak is the allocator's; on the CPU it is the resident memory of a fresh process with the
    same number of threads, so ``prepare`` and ``args`` must pickle. What libraries load in their
    first call counts, unless ``prepare`` makes one.
    """
    if device.type == "cuda":
        return _peak_allocated(prepare, args, device)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh) as pool:  # unlike a Pool, it tells of a child that dies
        return pool.submit(_peak_resident, torch.get_num_threads(), prepare, args).result()


def _peak_allocated(
    prepare: Callable[..., Callable[[], object]], args: tuple[Any, ...], device: torch.device
) -> int:
    gc.collect()  # what was measured before may hang in cycles, as watched modules do
    torch.cuda.empty_cache()
    run = prepare(*args)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_resident(
    threads: int, prepare: Callable[..., Callable[[], object]], args: tuple[Any, ...]
) -> int:
    torch.set_num_threads(threads)
    run = prepare(*args)
    before = _resident_high_water()
    run()
    return _resident_high_water() - before


def _resident_high_water() -> int:
    """Bytes: the most this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: getrusage would give that of the parent process, if larger
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
