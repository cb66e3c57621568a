"""Seconds and bytes of several ways to do the same, so that a ratio of them means something."""

from __future__ import annotations

import gc
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

CPU = torch.device("cpu")
T = TypeVar("T")


WARM_UP_SECONDS = 1.0
"""Of every path on CUDA, where clocks rise with work and kernels are chosen and compiled."""
TURN_SECONDS = 0.02
"""That a turn lasts at least on CUDA, by repetition: a short one is mostly its launch."""
MOST_RUNS = 100
"""Of a path in a turn."""


def in_turns(
    paths: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device = CPU,
    once: bool = False,
) -> dict[str, list[float]]:
    """Seconds of a run of each path in each turn, by name.

    After a warm-up every path has its turn in each of ``repeats`` rounds: what else the machine
    does hits all of them. On the CPU the warm-up and a turn are one run. On CUDA the warm-up takes
    ``WARM_UP_SECONDS``, and a turn, timed by events on the stream, holds as many runs as make
    ``TURN_SECONDS``, or one with ``once``.
    """
    times: dict[str, list[float]] = {name: [] for name in paths}
    usual = {name: _warm_up(path, device) for name, path in paths.items()}
    for _ in range(repeats):
        for name, path in paths.items():
            runs = 1 if once else _runs(usual[name], device)
            times[name].append(_seconds(path, runs, device))
    return times


def _warm_up(path: Callable[[], object], device: torch.device) -> float:
    """Seconds of the last run."""
    begun = time.perf_counter()
    seconds = _seconds(path, 1, device)
    while device.type == "cuda" and time.perf_counter() - begun < WARM_UP_SECONDS:
        seconds = _seconds(path, 1, device)
    return seconds


def _runs(seconds: float, device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return max(1, min(MOST_RUNS, math.ceil(TURN_SECONDS / seconds)))


def _seconds(path: Callable[[], object], runs: int, device: torch.device) -> float:
    """Of one of ``runs`` runs of a path."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(runs):
            path()
        return (time.perf_counter() - start) / runs
    torch.cuda.synchronize(device)
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(runs):
        path()
    ended.record()
    torch.cuda.synchronize(device)
    return begun.elapsed_time(ended) / 1000 / runs


def attempt(what: str, run: Callable[[], T], notes: list[str]) -> T | None:
    """What ``run()`` gives; where it fails, None and a line in ``notes`` about ``what``.

    For baselines: what others cannot do must not cost the rows that were measured of ours.
    """
    try:
        return run()
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        notes.append(f"{what} failed: {type(error).__name__}: {reason}")
        return None


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
